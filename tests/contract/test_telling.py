"""What an answer says beside the pictures: tokens, seeds, qualities, and the parameters inside a picture."""

from __future__ import annotations

import base64
import io

import msgspec
import openai
import pytest
from PIL import Image

from gateway.service.interfaces import PromptRead
from tests.contract.conftest import MODELS
from tests.contract.test_edits import data_url, png
from tests.contract.test_streaming import OPTIONS, stream

URL = "/v1/images/generations"
USAGE = {
    "input_tokens": 90,
    "output_tokens": 32,
    "total_tokens": 122,
    "input_tokens_details": {"text_tokens": 90, "image_tokens": 0},
}


async def test_usage_and_how_much_of_the_prompt_was_read(client, service):
    service.prompt = PromptRead(90, 13)
    response = await client.post(URL, json={"prompt": "x", "n": 2})
    assert response.json()["usage"] == USAGE
    assert (response.headers["x-prompt-tokens"], response.headers["x-prompt-truncated"]) == ("90", "13")
    service.prompt = PromptRead(90)
    response = await client.post(URL, json={"prompt": "x"})
    assert response.headers["x-prompt-tokens"] == "90"
    assert "x-prompt-truncated" not in response.headers


async def test_what_was_not_counted_is_not_told(client):
    response = await client.post(URL, json={"prompt": "x"})
    assert "usage" not in response.json()
    assert not [name for name in response.headers if name.startswith("x-prompt")]


async def test_events_tell_it_of_each_picture(client, service):
    service.prompt = PromptRead(90, 13)
    events, _ = await stream(client, n=2)
    assert [data["usage"]["output_tokens"] for _, data in events] == [16, 16]
    assert [data["usage"]["input_tokens"] for _, data in events] == [90, 90]
    assert [data["prompt_truncated"] for _, data in events] == [13, 13]


def test_openais_client_reads_usage(live, service):
    service.prompt = PromptRead(90, 13)
    with openai.OpenAI(base_url=f"{live}/v1", **OPTIONS) as sdk:
        answer = sdk.images.generate(model="tiny", prompt="x", n=2)
        assert answer.usage is not None
        assert answer.usage.total_tokens == 122
        (done,) = sdk.images.generate(model="tiny", prompt="x", stream=True)
        assert done.usage.total_tokens == 106


async def test_pictures_that_were_sent_count_but_the_mask(client, service):
    service.prompt = PromptRead(5)
    picture, mask = data_url(png(64, 48)), data_url(png(64, 48, mode="RGBA"))
    body = {"model": "editor", "prompt": "x", "images": [{"image_url": picture}], "mask": {"image_url": mask}}
    response = await client.post("/v1/images/edits", json=body)
    assert response.json()["usage"]["input_tokens_details"] == {"text_tokens": 5, "image_tokens": 12}
    assert len(response.headers["x-seeds"].split(",")) == 1


async def test_the_seed_minus_one_is_random(client, service):
    for _ in range(2):
        await client.post(URL, json={"prompt": "x", "seed": -1})
    first, second = service.requests
    assert first.images[0].seed != second.images[0].seed
    assert not first.exact
    refused = await client.post(URL, json={"prompt": "x", "seed": -2})
    assert refused.json()["error"]["code"] == "integer_below_min_value"


async def test_all_seeds_are_told(client):
    response = await client.post(URL, json={"prompt": "x", "seed": 2**63 - 2, "n": 3})
    assert response.headers["x-seeds"] == f"{2**63 - 2},{2**63 - 1},0"


@pytest.mark.parametrize("prompt", [" ", "\n\t  "])
async def test_a_blank_prompt_is_refused(client, prompt):
    response = await client.post(URL, json={"prompt": prompt})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "string_below_min_length", "prompt")
    form = await client.post(
        "/v1/images/edits", data={"model": "editor", "prompt": prompt}, files=[("image", ("a.png", png()))]
    )
    assert form.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    ("sent", "steps", "told"),
    [
        ({"quality": "low"}, 6, "low"),
        ({"quality": "hd"}, 20, "high"),
        ({"quality": "standard"}, 12, "medium"),
        ({"quality": "auto"}, None, None),
        ({}, None, None),
        ({"quality": "max"}, None, None),
        ({"quality": "low", "steps": 9}, 9, None),
        ({"quality": "low", "steps": 6}, 6, "low"),
    ],
)
async def test_a_quality_is_the_steps_that_the_model_names_for_it(client, service, sent, steps, told):
    tiny = msgspec.structs.replace(MODELS[0], quality_steps={"low": 6, "medium": 12, "high": 20})
    service.served = (tiny, *MODELS[1:])
    answer = await client.post(URL, json={"prompt": "x", **sent})
    assert service.requests[0].images[0].num_inference_steps == steps
    assert answer.json().get("quality") == told
    events, _ = await stream(client, **sent)
    assert events[-1][1]["quality"] == (told or "auto")


@pytest.mark.parametrize(
    ("sent", "level"),
    [({}, ""), ({"step_cache": None}, ""), ({"step_cache": "none"}, ""), ({"step_cache": "low"}, "low")],
)
async def test_a_step_cache_is_one_of_the_models_levels_and_the_answer_names_it(client, service, sent, level):
    tiny = msgspec.structs.replace(MODELS[0], step_caches={"low": "taylor:interval=2"})
    service.served = (tiny, *MODELS[1:])
    answer = await client.post(URL, json={"prompt": "x", **sent})
    assert service.requests[0].images[0].step_cache == level
    assert answer.headers.get("x-step-cache", "") == level
    listed = {model["id"]: model["abilities"] for model in (await client.get("/v1/models")).json()["data"]}
    assert listed["tiny"]["step_caches"] == {"low": "taylor:interval=2"}


async def test_a_step_cache_that_the_model_has_not_is_refused_with_those_that_it_has(client, service):
    service.served = (msgspec.structs.replace(MODELS[0], step_caches={"low": "pyramid"}), *MODELS[1:])
    for level in ("high", "LOW"):
        answer = await client.post(URL, json={"prompt": "x", "step_cache": level})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_value", "step_cache")
        assert error["message"] == f"The model 'tiny' has no 'step_cache' '{level}'; it has: none, low."
    assert not service.requests


async def test_an_edit_of_low_quality_may_leave_no_step(client, service):
    service.served = tuple(msgspec.structs.replace(model, quality_steps={"low": 2}) for model in MODELS)
    body = {"model": "editor", "prompt": "x", "quality": "low", "strength": 0.4, "image_url": data_url(png())}
    response = await client.post("/v1/images/edits", json=body)
    assert response.status_code == 400
    assert "Of 2 steps" in response.json()["error"]["message"]


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("mode", ["none", "parameters", "parameters+prompt"])
async def test_pictures_carry_what_the_operator_says(connect, mode, output_format):
    client = connect(embed_metadata=mode)
    body = {"prompt": "süß", "seed": 7, "steps": 5, "n": 2, "output_format": output_format}
    response = await client.post(URL, json=body)
    events, _ = await stream(client, **body)
    pictures = [item["b64_json"] for item in response.json()["data"]]
    assert pictures == [data["b64_json"] for _, data in events]
    picture = Image.open(io.BytesIO(base64.b64decode(pictures[1])))
    text = picture.info.get("parameters") if output_format == "png" else comment(picture)
    line = "Steps: 5, Seed: 8, Size: 64x64, Model: tiny"
    assert text == {"none": None, "parameters": line, "parameters+prompt": f"süß\n{line}"}[mode]


def comment(picture: Image.Image) -> str | None:
    value = picture.getexif().get_ifd(0x8769).get(0x9286)
    return value and value.removeprefix(b"UNICODE\0").decode("utf-16-be")

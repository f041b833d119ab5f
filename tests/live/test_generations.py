"""Pictures from texts."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections import Counter

import httpx
import openai
import pytest
from PIL import Image

from tests.contract.test_generations import CLIENTS, NULLABLE
from tests.live.conftest import MAX_WAITING, SIDE, arguments
from tests.picture_service import KEY, MODEL

pytestmark = pytest.mark.services


def opened(b64_json: str) -> Image.Image:
    picture = Image.open(io.BytesIO(base64.b64decode(b64_json, validate=True)))
    picture.load()
    return picture


def drawn(sdk: openai.OpenAI, **fields: object) -> list[str]:
    return [item.b64_json for item in sdk.images.generate(**arguments(**fields)).data]


def test_t01_t05_the_smallest_request(sdk):
    raw = sdk.images.with_raw_response.generate(model=MODEL, prompt="a red fox")
    answer = raw.http_response.json()
    assert raw.headers["content-type"] == "application/json"
    assert raw.headers["x-request-id"] == raw.parse()._request_id
    assert abs(answer["created"] - time.time()) < 600
    (item,) = answer["data"]
    assert list(item) == ["b64_json"]
    assert (opened(item["b64_json"]).format, opened(item["b64_json"]).size) == ("PNG", (SIDE, SIDE))
    assert (answer["size"], answer["usage"]["output_tokens"] > 0) == (f"{SIDE}x{SIDE}", True)


def test_t02_three_pictures(sdk):
    assert len(set(drawn(sdk, n=3))) == 3


def test_t03_null_means_absent(sdk):
    assert drawn(sdk, **dict.fromkeys(NULLABLE - {"seed"}), seed=3) == drawn(sdk, seed=3)
    assert len(drawn(sdk, seed=None)) == 1


def test_a_step_cache_changes_the_picture_and_brings_the_same_one_back(sdk):
    asked = {"seed": 3, "steps": 6, "guidance_scale": 3.0}
    exact = drawn(sdk, **asked)
    raw = sdk.images.with_raw_response.generate(**arguments(**asked, step_cache="high"))
    assert raw.headers["x-step-cache"] == "high"
    cached = [item["b64_json"] for item in raw.http_response.json()["data"]]
    assert cached != exact
    assert drawn(sdk, **asked, step_cache="high") == cached
    assert drawn(sdk, **asked, step_cache="none") == exact


@pytest.mark.parametrize(("output_format", "kind"), [("png", "PNG"), ("webp", "WEBP")])
def test_t04_a_url_opens_without_a_key(sdk, service, output_format, kind):
    answer = sdk.images.generate(**arguments(response_format="url", output_format=output_format))
    url = answer.data[0].url
    assert answer.data[0].b64_json is None
    assert url.startswith(f"{service.url}/")
    assert url.endswith(f".{output_format}")
    got = httpx.get(url)
    assert (got.status_code, got.headers["content-type"]) == (200, f"image/{output_format}")
    assert Image.open(io.BytesIO(got.content)).format == kind


@pytest.mark.parametrize("response_format", ["b64_json", "url"])
def test_t06_names_of_gpt_image_take_response_format(sdk, response_format):
    (item,) = sdk.images.generate(**arguments(model="gpt-image-1", response_format=response_format)).data
    assert getattr(item, response_format)


@pytest.mark.parametrize(("size", "told"), [("auto", (SIDE, SIDE)), ("96x64", (96, 64))])
def test_t16_the_answer_names_the_true_size(sdk, size, told):
    answer = sdk.images.generate(**arguments(size=size))
    assert answer.size == "{}x{}".format(*told)
    assert opened(answer.data[0].b64_json).size == told


@pytest.mark.parametrize(("quality", "told"), [("standard", "medium"), ("hd", "high"), ("low", "low"), ("auto", None)])
def test_t17_qualities_are_told_as_openai_has_them(sdk, quality, told):
    assert sdk.images.generate(**arguments(quality=quality)).quality == told


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_t18_formats_are_what_they_are_called(sdk, output_format):
    answer = sdk.images.generate(**arguments(output_format=output_format))
    assert (answer.output_format, opened(answer.data[0].b64_json).format) == (output_format, output_format.upper())


def test_t19_compression_compresses(sdk):
    small, large = (
        len(drawn(sdk, seed=1, output_format="jpeg", output_compression=compression)[0]) for compression in (0, 100)
    )
    assert small < large
    drawn(sdk, output_format="png", output_compression=100)


def test_t22_what_is_of_no_effect_is_taken(sdk):
    answer = sdk.images.generate(
        **arguments(user="u", safety_identifier="h-1", style="vivid", moderation="low", model="dall-e-3")
    )
    assert answer.safety_identifier == "h-1"


def test_t23_a_seed_names_a_picture(sdk):
    first, again = (drawn(sdk, n=2, seed=7) for _ in range(2))
    assert first == again
    assert first[0] != first[1]


def test_t24_steps_have_two_names(sdk):
    assert drawn(sdk, seed=7, steps=2) == drawn(sdk, seed=7, num_inference_steps=2) != drawn(sdk, seed=7, steps=3)


def test_t26_extensions_reach_the_stage_servers(sdk):
    fields = arguments(model=MODEL, n=2, steps=3, seed=5, negative_prompt="blur", guidance_scale=2.0)
    raw = sdk.images.with_raw_response.generate(**fields)
    assert raw.headers["x-seeds"] == "5,6"
    assert raw.headers["server-timing"].count("dit steps=3") == 2
    plain = drawn(sdk, seed=5, steps=3)
    assert plain != drawn(sdk, seed=5, steps=3, guidance_scale=2.0, negative_prompt="blur")


@pytest.mark.parametrize("name", CLIENTS)
def test_t53_bodies_of_known_clients(http, name):
    """As they were read or run; ``make test-clients`` has the clients themselves."""
    models = {"tiny": MODEL}
    sizes = {"512x512": "96x96", "1024x1024": "128x128"}  # which the model makes, and which are drawn at once
    body = {"prompt": "a red circle"} | CLIENTS[name]
    body |= {"model": models.get(body["model"], body["model"])}
    body |= {"size": sizes.get(body["size"], body["size"])} if "size" in body else {}
    answer = http.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    assert all(item.get("url") or opened(item["b64_json"]) for item in answer.json()["data"])


async def test_t53_the_asynchronous_client_sees_the_same(sdk, service):
    strict = {"api_key": KEY, "max_retries": 0, "_strict_response_validation": True}
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", **strict) as client:
        answer = await client.images.generate(**arguments(seed=7))
        stream = await client.images.generate(**arguments(seed=7), stream=True)
        events = [event async for event in stream]
        edited = await client.images.edit(
            model=MODEL, image=base64.b64decode(answer.data[0].b64_json), prompt="x", extra_body={"strength": 1.0}
        )
    assert [item.b64_json for item in answer.data] == drawn(sdk, seed=7) == [events[-1].b64_json]
    assert opened(edited.data[0].b64_json).size == (SIDE, SIDE)


async def test_t54_a_burst_mixes_no_pictures_up(sdk, service):
    """Of more requests than are let in: some may be told that the server is full, and nothing else."""
    seeds = range(MAX_WAITING)
    alone = {seed: drawn(sdk, seed=seed) for seed in seeds}
    assert len({picture for (picture,) in alone.values()}) == len(seeds)
    strict = {"api_key": KEY, "max_retries": 0, "_strict_response_validation": True}
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", **strict) as client:

        async def draw(seed: int) -> str:
            try:
                answer = await client.images.generate(**arguments(seed=seed))
            except openai.InternalServerError as error:
                return f"{error.status_code} {error.code}"
            return "right" if [item.b64_json for item in answer.data] == alone[seed] else "wrong"

        told = Counter(await asyncio.gather(*(draw(seed) for seed in (*seeds, *seeds))))
    assert set(told) <= {"right", "503 server_is_overloaded"}
    assert told["right"] >= len(seeds)

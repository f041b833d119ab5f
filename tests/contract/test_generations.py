"""What a well-formed request gets (contract tests T1–T6, T15–T20, T22–T24)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import time

import httpx
import pytest
from PIL import Image

from gateway.api.schema import NOT_SERVED, GenerationBody

URL = "/v1/images/generations"
NULLABLE = (set(GenerationBody.field_names()) | NOT_SERVED) - {"prompt"}


async def generate(client: httpx.AsyncClient, **body: object) -> dict:
    response = await client.post(URL, json={"prompt": "a red circle", **body})
    assert response.status_code == 200, response.text
    return response.json()


def picture(item: dict) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(item["b64_json"], validate=True)))


async def test_the_smallest_request(client, service):
    response = await client.post(URL, json={"model": "tiny", "prompt": "a red fox"})
    answer = response.json()
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    assert int(response.headers["openai-processing-ms"]) >= 0
    assert abs(answer.pop("created") - time.time()) < 60
    (item,) = answer.pop("data")
    assert list(item) == ["b64_json"]
    assert picture(item).size == (64, 64)
    assert answer == {"background": "opaque", "output_format": "png", "size": "64x64"}
    (request,) = service.requests
    assert request.model == "tiny"
    assert request.request_id == response.headers["x-request-id"]
    assert request.deadline_seconds == 600


async def test_three_images_have_three_seeds(client, service):
    answer = await generate(client, n=3, seed=2**63 - 2)
    assert len({item["b64_json"] for item in answer["data"]}) == 3
    assert [image.seed for image in service.requests[0].images] == [2**63 - 2, 2**63 - 1, 0]


async def test_null_means_absent(client, service):
    await generate(client)
    answer = await generate(client, **dict.fromkeys(NULLABLE))
    assert list(answer["data"][0]) == ["b64_json"]
    plain, with_nulls = (request.images[0] for request in service.requests)
    assert plain.seed != with_nulls.seed  # random without one
    assert {f: getattr(plain, f) for f in plain.__struct_fields__ if f != "seed"} == {
        f: getattr(with_nulls, f) for f in with_nulls.__struct_fields__ if f != "seed"
    }


async def test_the_model_may_be_left_out(client, connect, service):
    await generate(client)
    await generate(connect(default_model="org/plain"))
    assert [request.model for request in service.requests] == ["tiny", "org/plain"]


@pytest.mark.parametrize(
    ("model", "response_format", "key"),
    [
        ("tiny", None, "b64_json"),
        ("gpt-image-1", None, "b64_json"),
        ("gpt-image-1", "b64_json", "b64_json"),
        ("gpt-image-1", "url", "url"),
        ("dall-e-3", None, "url"),
        ("dall-e-3", "b64_json", "b64_json"),
        ("tiny", "base64", "b64_json"),
    ],
)
async def test_response_formats(client, service, model, response_format, key):
    answer = await generate(client, model=model, response_format=response_format)
    assert [list(item) for item in answer["data"]] == [[key]]
    assert service.requests[0].model == "tiny"


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
async def test_a_url_opens_without_a_key(connect, output_format):
    client = connect(api_keys={})
    answer = await generate(client, response_format="url", output_format=output_format)
    url = answer["data"][0]["url"]
    assert url.startswith("http://gateway.test/v1/images/files/img_")
    assert url.endswith(f".{output_format}")
    got = await client.get(url)
    assert got.headers["content-type"] == f"image/{output_format}"
    assert Image.open(io.BytesIO(got.content)).format == output_format.upper()
    head = await client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(got.content))


async def test_urls_start_with_the_public_url(connect):
    answer = await generate(connect(public_url="https://images.example/base/"), response_format="url")
    assert answer["data"][0]["url"].startswith("https://images.example/base/v1/images/files/img_")


async def test_an_expired_url_is_a_404_in_the_envelope(connect):
    client = connect(results_max_age_seconds=1e-9)
    answer = await generate(client, response_format="url")
    response = await client.get(answer["data"][0]["url"])
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "file_not_found"


@pytest.mark.parametrize(
    ("output_format", "magic"), [("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF"), ("png", b"\x89PNG")]
)
async def test_output_formats(client, service, output_format, magic):
    answer = await generate(client, output_format=output_format)
    assert base64.b64decode(answer["data"][0]["b64_json"]).startswith(magic)
    assert answer["output_format"] == output_format
    assert service.requests[0].images[0].output_format == output_format


async def test_compression_reaches_the_decoder(client, service):
    await generate(client, output_format="jpeg", output_compression=0)
    await generate(client, output_format="webp")
    await generate(client, output_format="png", output_compression=100)
    assert [request.images[0].output_compression for request in service.requests] == [0, 100, 100]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"size": "auto"}, "64x64"),
        ({"size": "512x512"}, "512x512"),
        ({"size": "128x48"}, "128x48"),
        ({"width": 96, "height": 64}, "96x64"),
        ({"size": "auto", "width": 96, "height": 64}, "96x64"),
        ({"size": "96x64", "width": 96, "height": 64}, "96x64"),
    ],
)
async def test_sizes_are_truthful(client, sizes, expected):
    answer = await generate(client, **sizes)
    assert answer["size"] == expected
    assert "{}x{}".format(*picture(answer["data"][0]).size) == expected


@pytest.mark.parametrize("quality", ["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"])
async def test_quality_is_echoed_only_where_a_response_may_hold_it(client, quality):
    answer = await generate(client, quality=quality)
    assert answer.get("quality") == (None if quality in ("auto", "standard", "hd") else quality)


async def test_a_seed_names_a_picture(client, service):
    first, again = [await generate(client, seed=7, n=2) for _ in range(2)]
    assert first["data"] == again["data"]
    assert first["data"][0] != first["data"][1]
    response = await client.post(URL, json={"prompt": "x"})
    assert int(response.headers["x-seed"]) == service.requests[-1].images[0].seed


@pytest.mark.parametrize("name", ["num_inference_steps", "steps", "step"])
async def test_names_of_steps(client, service, name):
    await generate(client, **{name: 7})
    assert service.requests[0].images[0].num_inference_steps == 7


@pytest.mark.parametrize("name", ["guidance_scale", "cfg_scale", "guidance"])
async def test_names_of_guidance(client, service, name):
    await generate(client, **{name: 4})
    assert service.requests[0].images[0].guidance_scale == 4.0


async def test_synonyms_may_agree(client, service):
    await generate(client, steps=5, num_inference_steps=5, guidance=3, guidance_scale=3.0)
    assert service.requests[0].images[0].num_inference_steps == 5


async def test_extensions_reach_the_pipeline(client, service):
    await generate(client, negative_prompt="blur", max_sequence_length=128, seed=42)
    (image,) = service.requests[0].images
    assert (image.negative_prompt, image.max_sequence_length, image.seed) == ("blur", 128, 42)
    assert (image.prompt, image.workflow) == ("a red circle", "text2image")


async def test_an_empty_negative_prompt_says_nothing(client, service):
    await generate(client, model="org/plain", negative_prompt="")
    assert service.requests[0].images[0].negative_prompt is None


CLIENTS = {
    "Open WebUI": {"model": "tiny", "n": 1, "size": "512x512", "response_format": "b64_json"},
    "LibreChat": {"model": "gpt-image-1", "background": "auto", "output_format": "webp", "output_compression": 80}
    | {"quality": "auto", "size": "auto"},
    "LangChain js": {"model": "dall-e-3", "n": 1, "size": "1024x1024", "quality": "standard", "style": "vivid"}
    | {"response_format": "url", "user": "u-1"},
    "AI SDK": {"model": "tiny", "n": 1, "size": "64x64", "response_format": "b64_json", "seed": 3},
    "n8n": {"model": "dall-e-3", "response_format": "b64_json", "quality": "hd", "n": 1, "style": "natural"},
    "HF together": {"model": "tiny", "response_format": "base64", "steps": 4},
    "LiteLLM": {"model": "tiny", "moderation": "low", "safety_identifier": "h-1", "user": "u-1", "stream": False},
    "OpenAI Python with defaults": {"model": "gpt-image-1", "partial_images": 0, "stream": False},
}


@pytest.mark.parametrize("client_name", CLIENTS)
async def test_bodies_of_known_clients(client, client_name):
    await generate(client, **CLIENTS[client_name])


async def test_safety_identifier_comes_back(client):
    assert (await generate(client, safety_identifier="h-1", user="u"))["safety_identifier"] == "h-1"


async def test_a_query_and_a_charset_are_no_obstacle(client):
    response = await client.post(
        f"{URL}?api-version=2025-04-01",
        content=b'{"prompt": "x"}',
        headers={"content-type": "application/json; charset=utf-8"},
    )
    assert response.status_code == 200


async def test_stage_timings_and_prediction_travel_as_headers(client, connect):
    response = await client.post(URL, json={"prompt": "x"})
    assert response.headers["x-predicted-wait-ms"] == "1250"
    assert response.headers["server-timing"] == (
        'encoder.queue;dur=1.0, encoder.fetch;dur=2.0, encoder.compute;dur=3.0;desc="cpu-1/ab", encoder.publish;dur=4.0'
        ', dit.0.queue;dur=0.0, dit.0.fetch;dur=0.0, dit.0.compute;dur=500.0;desc="gpu_1 steps=8 attempts=2"'
        ", dit.0.publish;dur=0.0"
    )
    hidden = await connect(expose_stage_timings=False).post(URL, json={"prompt": "x"})
    assert "server-timing" not in hidden.headers


async def test_a_burst_mixes_no_pictures_up(client):
    expected = [(await generate(client, seed=seed))["data"] for seed in range(32)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(generate(client, seed=seed)) for seed in range(32)]
    assert [task.result()["data"] for task in tasks] == expected
    assert len({hashlib.sha256(data[0]["b64_json"].encode()).digest() for data in expected}) == 32

"""``POST /v1/images/edits``: pictures in every form that clients send them (contract tests T46–T49)."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import SecretStr

from gateway.api.edit_schema import EditBody
from gateway.api.schema import NOT_SERVED
from gateway.service.interfaces import NoCapacity

URL = "/v1/images/edits"
EDITOR = {"model": "editor", "prompt": "make it blue"}
INSTRUCTOR = {"model": "instructor", "prompt": "make it blue"}


def png(*size: int, mode: str = "RGB", colour: Any = 0, alpha: int | None = None) -> bytes:
    picture = Image.new(mode, size or (64, 48), colour)
    if alpha is not None:
        picture.putalpha(alpha)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


PNG = png()
FILE = ("image", ("a.png", PNG, "image/png"))


async def send(client: httpx.AsyncClient, files: list[Any], fields: dict[str, Any] = EDITOR) -> dict:
    response = await client.post(URL, data=fields, files=files)
    assert response.status_code == 200, response.text
    return response.json()


async def send_json(client: httpx.AsyncClient, **body: Any) -> dict:
    response = await client.post(URL, json=EDITOR | body)
    assert response.status_code == 200, response.text
    return response.json()


async def refusal(response: httpx.Response, status: int = 400) -> tuple[str, str | None, str]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    return error["code"], error["param"], error["message"]


async def refused(client: httpx.AsyncClient, files: list[Any], fields: dict[str, Any] = EDITOR, status: int = 400):
    return await refusal(await client.post(URL, data=fields, files=files), status)


async def refused_json(client: httpx.AsyncClient, body: dict[str, Any], status: int = 400):
    return await refusal(await client.post(URL, json=EDITOR | body), status)


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("image", ("a.png", PNG, "image/png")),
        ("image[]", ("a.png", PNG, "image/png")),
        ("image[0]", ("a.png", PNG, "image/png")),
        ("image", ("upload", PNG, "application/octet-stream")),  # T49
        ("image", ("a.jpg", PNG, "image/jpeg")),
    ],
)
async def test_a_picture_in_a_form(client, service, name, file):
    answer = await send(client, [(name, file)])
    assert answer["size"] == "64x48"
    assert [list(item) for item in answer["data"]] == [["b64_json"]]
    (request,) = service.requests
    assert list(request.uploads) == ["image"]
    assert pixels(request.uploads["image"]).shape == (48, 64, 3)
    (params,) = request.images
    assert (params.workflow, params.prompt, params.strength) == ("image2image", "make it blue", 0.8)
    assert (params.width, params.height) == (64, 48)


@pytest.mark.parametrize("name", ["image", "image[]"])
async def test_several_pictures_keep_their_order(client, service, name):
    files = [(name, (f"{shade}.png", png(8, 8, colour=(shade, 0, 0)))) for shade in (10, 20, 30, 40)]
    answer = await send(client, files, INSTRUCTOR)
    uploads = service.requests[0].uploads
    assert list(uploads) == ["image", "image_1", "image_2", "image_3"]
    assert [pixels(picture)[0, 0, 0] for picture in uploads.values()] == [10, 20, 30, 40]
    assert service.requests[0].images[0].workflow == "image_conditioned"
    assert service.requests[0].images[0].strength is None
    assert answer["size"] == "16x16"


@pytest.mark.parametrize(
    "body",
    [
        {"images": [{"image_url": data_url(PNG)}]},
        {"images": [{"image_url": data_url(PNG), "file_id": None}], "mask": None},
        {"image_url": data_url(PNG)},
        {"reference_images": [data_url(PNG)]},
        {"images": None, "image_url": data_url(PNG, "application/octet-stream")},
        {"images": [{"image_url": data_url(PNG).replace("data:", "DATA:", 1)}]},
    ],
)
async def test_a_picture_in_json(client, service, body):
    await send_json(client, **body)
    assert pixels(service.requests[0].uploads["image"]).shape == (48, 64, 3)


@pytest.mark.parametrize(("plain", "escaped"), [("/", "\\/"), ("+", "\\u002B")])
async def test_what_is_escaped_in_json_is_itself(client, service, plain, escaped):
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    body = json.dumps(EDITOR | {"images": [{"image_url": data_url(buffer.getvalue())}]})
    assert plain in body.partition("base64,")[2]
    headers = {"content-type": "application/json"}
    response = await client.post(URL, content=body.replace(plain, escaped), headers=headers)
    assert response.status_code == 200, response.text
    assert (pixels(service.requests[0].uploads["image"]) == noise).all()


async def test_a_data_url_in_a_form(client, service):
    await send(client, [("image_url", (None, data_url(PNG)))])
    await send(client, [("image", (None, data_url(PNG)))])
    assert [list(request.uploads) for request in service.requests] == [["image"], ["image"]]


async def test_json_may_have_several_pictures_and_large_ones(client, service):
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    large = data_url(buffer.getvalue())
    assert len(large) > 1 << 20  # so that it is spooled
    body = INSTRUCTOR | {"images": [{"image_url": large}, {"image_url": data_url(PNG)}]}
    response = await client.post(URL, json=body)
    assert response.status_code == 200, response.text
    uploads = service.requests[0].uploads
    assert (pixels(uploads["image"]) == noise).all()
    assert pixels(uploads["image_1"]).shape == (48, 64, 3)


PICTURES = {
    "text": (b"no picture", "image"),
    "SVG": (b"<svg/>", "image"),
    "truncated": (PNG[:-30], "image"),
}


@pytest.mark.parametrize("name", PICTURES)
async def test_bad_pictures(client, service, name):
    data, param = PICTURES[name]
    response = await client.post(URL, data=EDITOR, files=[("image", ("a.png", data))])
    assert response.json()["error"]["type"] == "image_generation_user_error"
    assert (await refusal(response))[:2] == ("invalid_image", param)
    assert (await refused_json(client, {"image_url": data_url(data)}))[:2] == ("invalid_image", param)
    assert (await refused(client, [FILE, ("mask", ("m.png", data))]))[:2] == ("invalid_image", "mask")
    assert service.requests == []


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "image"),
        ({"images": []}, "missing_required_parameter", "image"),
        ({"images": [{"image_url": data_url(PNG)}] * 17}, "invalid_value", "image"),
        ({"images": [{"image_url": data_url(PNG), "file_id": "f"}]}, "invalid_value", "images.0"),
        ({"images": [{}]}, "invalid_value", "images.0"),
        ({"images": [{"image_url": data_url(PNG), "detail": "high"}]}, "invalid_type", "images"),
        ({"images": data_url(PNG)}, "invalid_type", "images"),
        ({"images": [data_url(PNG)]}, "invalid_type", "images"),
        ({"images": [{"image_url": 5}]}, "invalid_type", "images.0.image_url"),
        ({"image_url": {"url": "x"}}, "invalid_type", "image_url"),
        ({"image_url": "x" * 20_971_521}, "string_above_max_length", "image_url"),
        ({"image_url": "data:image/png,abc"}, "invalid_image", "image"),
        ({"image_url": "data:image/png;base64,***"}, "invalid_image", "image"),
        ({"image_url": "data:image/png;base64,\n\n"}, "invalid_image", "image"),
        ({"image_url": "data:" + "x" * 1000}, "invalid_image", "image"),
        ({"image_url": "file:///etc/passwd"}, "invalid_image_url", "image"),
        ({"image_url": "x.png"}, "invalid_image_url", "image"),
        ({"image_url": data_url(PNG), "mask": data_url(PNG)}, "invalid_type", "mask"),
        ({"image_url": data_url(PNG), "prompt": "x" * 40_000}, "string_above_max_length", "prompt"),
        ({"image_url": data_url(PNG), "foo": 1}, "unknown_parameter", "foo"),
        ({"image_url": data_url(PNG), "n": "2"}, "invalid_type", "n"),
    ],
)
async def test_bad_json(client, service, body, code, param):
    assert (await refused_json(client, body))[:2] == (code, param)
    assert service.requests == []


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_type"),
        (b"\xff", "invalid_json"),
        (b'{"\xff": 1}', "invalid_json"),
        (b'{"a": ' + b"[" * 100_000, "invalid_json"),
        (b'{"prompt": "x", "images": [{"file_id": "\xff"}]}', "invalid_type"),
        (b'{"prompt": "x", "images": [{"file_id": "\\ud800"}]}', "invalid_json"),
        (b'{"prompt": "x", "image_url": "http://\xff"}', "invalid_type"),
        (b'{"prompt": "x", "image_url": "http://\\ud800"}', "invalid_json"),
        (b'{"prompt": "x", "model": "editor", "image_url": "data:image/png;base64,\\q"}', "invalid_json"),
        (b'{"prompt": "x", "model": "editor", "image_url": "data:image/png;base64,\\/\xff"}', "invalid_image"),
        (b'{"prompt": "x", "model": "editor", "image_url": "data:image/png;base64,\xff"}', "invalid_image"),
        (b'{"prompt": "\xff", "image_url": "data:image/png;base64,"}', "invalid_json"),
    ],
)
async def test_what_is_no_json(client, raw, code):
    response = await client.post(URL, content=raw, headers={"content-type": "application/json"})
    assert (await refusal(response))[0] == code


async def test_a_file_id_that_nobody_knows(client):
    code, param, _ = await refused_json(client, {"images": [{"file_id": "file-abc"}]}, 404)
    assert (code, param) == ("file_not_found", "file_id")


async def test_an_uploaded_file_is_named_by_its_id(connect, service):
    client = connect(api_keys={"a": SecretStr("key-a"), "b": SecretStr("key-b")}, max_image_bytes=2000)
    files = {}
    for name, data in (("small", PNG), ("large", PNG + bytes(2000))):
        sent = {"file": (f"{name}.png", data)}
        uploaded = await client.post("/v1/files", files=sent, data={"purpose": "vision"}, headers={"api-key": "key-a"})
        files[name] = uploaded.json()["id"]

    async def edit(name: str, key: str) -> httpx.Response:
        body = EDITOR | {"images": [{"file_id": files[name]}]}
        return await client.post(URL, json=body, headers={"api-key": key})

    assert (await edit("small", "key-a")).status_code == 200
    assert Image.open(io.BytesIO(service.requests[-1].uploads["image"])).size == (64, 48)
    assert (await refusal(await edit("small", "key-b"), 404))[:2] == ("file_not_found", "file_id")
    assert (await refusal(await edit("large", "key-a")))[:2] == ("invalid_image", "file_id")


async def test_media_types(client):
    for content_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = await client.post(URL, content=b"x", headers={"content-type": content_type})
        assert (await refusal(response, 415))[0] == "unsupported_media_type"


async def test_variations_do_not_exist(client):
    response = await client.post("/v1/images/variations", files=[FILE])
    assert (await refusal(response, 404))[0] == "unknown_url"


# --- forms ------------------------------------------------------------------------------------------------------------


async def test_texts_become_numbers(client, service):
    fields = EDITOR | {
        "n": "2",
        "seed": "7",
        "steps": "10",
        "strength": "0.5",
        "guidance_scale": "3",
        "stream": "False",
    }
    fields |= {"size": "None", "quality": "", "output_compression": "100.0", "background": "null", "user": "None"}
    answer = await send(client, [FILE], fields)
    assert len(answer["data"]) == 2
    first, second = service.requests[0].images
    assert (first.seed, second.seed, first.num_inference_steps) == (7, 8, 10)
    assert (first.strength, first.guidance_scale) == (0.5, 3.0)


@pytest.mark.parametrize("text", ["true", "True", "1"])
async def test_texts_become_truth(client, text):
    response = await client.post(URL, data=EDITOR | {"stream": text}, files=[FILE])
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"n": "two"}, "invalid_type", "n"),
        ({"n": "1.5"}, "invalid_type", "n"),
        ({"n": "0"}, "integer_below_min_value", "n"),
        ({"n": "11"}, "integer_above_max_value", "n"),
        ({"stream": "maybe"}, "invalid_type", "stream"),
        ({"strength": "0"}, "decimal_below_min_value", "strength"),
        ({"strength": "1.5"}, "decimal_above_max_value", "strength"),
        ({"strength": "nan"}, "invalid_value", "strength"),
        ({"strength": "0.5", "input_fidelity": "high"}, "invalid_value", "input_fidelity"),
        ({"strength": "0.1"}, "invalid_value", "strength"),  # of 8 steps
        ({"input_fidelity": "middle"}, "invalid_value", "input_fidelity"),
        ({"lora[][path]": "a"}, "unknown_parameter", "lora[][path]"),
        ({"lora[][name]": ["a", "b"], "lora[][scale]": "1"}, "invalid_value", "lora"),
        ({"lora": "nobody"}, "invalid_value", "lora"),
        ({"markup": "a"}, "unsupported_parameter", "markup"),
        ({"foo": "a"}, "unknown_parameter", "foo"),
        ({"foo[bar]": "a"}, "unknown_parameter", "foo[bar]"),
        ({"n": ["1", "1"]}, "invalid_value", "n"),
        ({"prompt": ""}, "string_below_min_length", "prompt"),
        ({"prompt": "x" * 32_001}, "string_above_max_length", "prompt"),
        ({"image": "what"}, "invalid_type", "image"),
        ({"size": "60x48"}, "invalid_value", "size"),
        ({"model": "nobody"}, "model_not_found", "model"),
        ({"partial_images": "2"}, "invalid_value", "partial_images"),
    ],
)
async def test_bad_fields(client, service, fields, code, param):
    status = 404 if code == "model_not_found" else 400
    assert (await refused(client, [FILE], EDITOR | fields, status))[:2] == (code, param)
    assert service.requests == []


async def test_a_form_without_a_prompt_or_a_picture(client):
    code, param, _ = await refused(client, [FILE], {"model": "editor"})
    assert (code, param) == ("missing_required_parameter", "prompt")
    code, param, _ = await refused(client, [("prompt", (None, "x"))], {})
    assert (code, param) == ("missing_required_parameter", "image")
    assert (await refused(client, [FILE, ("picture", ("a.png", PNG))]))[:2] == ("unknown_parameter", "picture")


async def test_seventeen_pictures(client):
    assert (await refused(client, [FILE] * 17, INSTRUCTOR))[:2] == ("invalid_value", "image")


# --- masks ------------------------------------------------------------------------------------------------------------


async def test_a_mask_says_where(client, service):
    mask = Image.new("RGBA", (64, 48), (0, 0, 0, 255))
    mask.putpixel((5, 7), (0, 0, 0, 0))
    mask.putpixel((6, 7), (0, 0, 0, 55))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    await send(client, [FILE, ("mask", ("m.png", buffer.getvalue()))])
    await send_json(client, image_url=data_url(PNG), mask={"image_url": data_url(buffer.getvalue())})
    for request in service.requests:
        assert list(request.uploads) == ["image", "mask_image"]
        grey = pixels(request.uploads["mask_image"])
        assert (grey.shape, grey.dtype) == ((48, 64), np.uint8)
        assert (grey[7, 5], grey[7, 6], grey.sum()) == (255, 200, 455)
        assert (request.images[0].workflow, request.images[0].strength) == ("inpainting", 1.0)


async def test_the_pictures_own_alpha_is_the_mask(client, service):
    await send(client, [("image", ("a.png", png(alpha=155)))])
    await send(client, [("image", ("a.png", png(alpha=255)))])
    with_mask, without = service.requests
    assert (pixels(with_mask.uploads["mask_image"]) == 100).all()
    assert with_mask.images[0].workflow == "inpainting"
    assert (list(without.uploads), without.images[0].workflow) == (["image"], "image2image")


async def test_a_mask_that_is_sent_wins_over_alpha(client, service):
    await send(client, [("image", ("a.png", png(alpha=0))), ("mask", ("m.png", png(alpha=155)))])
    uploads = service.requests[0].uploads
    assert (pixels(uploads["mask_image"]) == 100).all()
    assert (pixels(uploads["image"]) == 255).all()


async def test_a_model_without_masks_takes_alpha_for_white(client, service):
    await send(client, [("image", ("a.png", png(colour=(9, 9, 9), alpha=0)))], INSTRUCTOR)
    assert list(service.requests[0].uploads) == ["image"]
    assert (pixels(service.requests[0].uploads["image"]) == 255).all()


@pytest.mark.parametrize("mask", [png(48, 64, alpha=0), png(64, 48)])
async def test_masks_that_do_not_fit(client, mask):
    code, param, message = await refused(client, [FILE, ("mask", ("m.png", mask))])
    assert (code, param) == ("invalid_image", "mask")
    assert "48x64" in message or "no alpha" in message


async def test_two_masks(client):
    mask = ("mask", ("m.png", png(alpha=0)))
    assert (await refused(client, [FILE, mask, mask]))[:2] == ("invalid_value", "mask")


async def test_a_mask_may_have_so_many_bytes(connect):
    client = connect(max_mask_bytes=100)
    code, param, message = await refused(client, [FILE, ("mask", ("m.png", png(alpha=0) + bytes(100)))])
    assert (code, param) == ("invalid_image", "mask")
    assert "at most 100 bytes" in message


# --- what models can do -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "files", "param", "words"),
    [
        ("tiny", [FILE], "model", "cannot edit pictures. It can: text2image."),
        ("editor", [FILE, FILE], "image", "cannot take 2 pictures. It can: image2image with one picture, inpainting"),
        ("instructor", [FILE] * 5, "image", "image_conditioned with up to 4 pictures"),
        ("instructor", [FILE, ("mask", ("m.png", png(alpha=0)))], "mask", "cannot edit within a mask"),
    ],
)
async def test_a_model_says_what_it_can_do(client, service, model, files, param, words):
    code, named, message = await refused(client, files, EDITOR | {"model": model})
    assert (code, named) == ("unsupported_value", param)
    assert words in message
    assert service.requests == []


async def test_a_model_without_strength_refuses_it(client):
    assert (await refused(client, [FILE], INSTRUCTOR | {"strength": "0.5"}))[:2] == (
        "unsupported_parameter",
        "strength",
    )
    assert (await refused(client, [FILE], INSTRUCTOR | {"steps": "5"}))[:2] == ("unsupported_parameter", "steps")
    await send(client, [FILE], INSTRUCTOR | {"input_fidelity": "high"})


@pytest.mark.parametrize(("fidelity", "strength"), [("high", 0.4), ("low", 0.8)])
async def test_input_fidelity_is_a_strength(client, service, fidelity, strength):
    await send(client, [FILE], EDITOR | {"input_fidelity": fidelity})
    assert service.requests[0].images[0].strength == strength


@pytest.mark.parametrize(
    ("model", "sent", "expected"),
    [
        ("editor", (64, 48), "64x48"),
        ("editor", (70, 41), "64x48"),
        ("editor", (1, 1), "16x16"),
        ("editor", (300, 100), "304x96"),
        ("instructor", (1024, 512), "720x352"),
        ("instructor", (4000, 4000), "512x512"),
    ],
)
async def test_the_answer_has_the_pictures_size(client, service, model, sent, expected):
    files = [("image", ("a.png", png(*sent)))]
    for size in ({}, {"size": "auto"}):
        assert (await send(client, files, {"model": model, "prompt": "x", **size}))["size"] == expected
    assert pixels(service.requests[0].uploads["image"]).shape[1::-1] == (sent if sent != (4000, 4000) else (2880, 2880))


async def test_another_size_may_be_named(client):
    assert (await send(client, [FILE], EDITOR | {"size": "128x64"}))["size"] == "128x64"
    assert (await send(client, [FILE], EDITOR | {"width": "96", "height": "64"}))["size"] == "96x64"


async def test_a_picture_too_long_needs_a_size(client):
    files = [("image", ("a.png", png(400, 100)))]
    code, param, message = await refused(client, files)
    assert (code, param) == ("invalid_value", "size")
    assert "400x100" in message
    await send(client, files, EDITOR | {"size": "128x64"})


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_bodies_have_a_limit(connect):
    client = connect(max_edit_body_bytes=1000)
    large = [("image", ("a.png", bytes(2000)))]
    assert (await refused(client, large, status=413))[0] == "request_too_large"
    assert (await refused_json(client, {"image_url": "x" * 2000}, 413))[0] == "request_too_large"


async def test_files_have_a_limit(connect):
    client = connect(max_image_bytes=1000)
    code, param, _ = await refused(client, [("image", ("a.png", bytes(1001)))], status=413)
    assert (code, param) == ("request_too_large", "image")
    assert (await refused_json(client, {"image_url": data_url(PNG + bytes(1000))}))[:2] == ("invalid_image", "image")


async def test_all_but_the_pictures_has_a_limit_of_its_own(client):
    body = {"image_url": data_url(PNG), "user": "x" * 70_000}  # above max_body_bytes
    assert (await refused_json(client, body, 413))[0] == "request_too_large"


async def test_uploads_share_one_room(connect, service):
    client = connect(uploads_max_bytes=4000)
    response = await client.post(URL, data=EDITOR, files=[("image", ("a.png", PNG + bytes(4000)))])
    assert (await refusal(response, 503))[0] == "server_is_overloaded"
    assert response.headers["retry-after"] == "5"
    response = await client.post(URL, data=EDITOR, files=[FILE])  # which is 9 KB decoded
    assert (await refusal(response, 503))[0] == "server_is_overloaded"
    await send(client, [("image", ("a.png", png(8, 8)))])
    service.error = NoCapacity("Full.", retry_after_seconds=7)
    assert (await refused(client, [("image", ("a.png", png(8, 8)))], status=503))[0] == "server_is_overloaded"
    assert client._transport.app.state.api.room.nbytes == 0


async def test_links_may_be_switched_off(connect):
    code, param, message = await refused_json(
        connect(fetch_image_urls=False), {"image_url": "https://example.com/a.png"}
    )
    assert (code, param) == ("unsupported_value", "image")
    assert "fetches no pictures" in message


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/a.png",
        "http://localhost/a.png",
        "http://2130706433/a.png",
        "ftp://example.com/a.png",
    ],
)
async def test_links_lead_to_public_addresses_only(client, service, url):
    """T48. Each way of the fetch itself: ``tests/api/test_remote_pictures.py``."""
    assert (await refused_json(client, {"images": [{"image_url": url}]}))[:2] == ("invalid_image_url", "image")
    assert service.requests == []


# --- whatever comes ---------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        *sorted(EditBody.field_names()),
        *sorted(NOT_SERVED),
        "image",
        "image[]",
        "mask",
        "image_url",
        "lora[]",
        "lora[][scale]",
    ]
)
TEXTS = st.sampled_from(
    ["", "None", "1", "2.0", "-1", "1e999", "true", "auto", "64x64", "\0", data_url(PNG), "http://["]
)
PARTS = st.one_of(
    st.tuples(NAMES, st.tuples(st.none(), TEXTS | st.text(max_size=8))),
    st.tuples(NAMES, st.tuples(st.just("a.png"), st.sampled_from([PNG, b"", png(alpha=3), PNG[:50]]))),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["image_url", "file_id", "x"]), inner),
    max_leaves=4,
)
JSON_NAMES = st.sampled_from(["images", "mask", "reference_images", "image_url", "n", "size", "prompt", "strength"])


@given(st.lists(PARTS, max_size=5), st.booleans())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_form_is_our_fault(client, parts, complete):
    response = await client.post(URL, files=[*([FILE, ("prompt", (None, "x"))] if complete else []), *parts])
    assert response.status_code < 500, response.text


@given(st.dictionaries(JSON_NAMES, VALUES, max_size=4))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_json_is_our_fault(client, body):
    raw = json.dumps(EDITOR | {"image_url": data_url(PNG)} | body)
    response = await client.post(URL, content=raw, headers={"content-type": "application/json"})
    assert response.status_code < 500, response.text

"""Edits as real clients send them: OpenAI's SDK, curl, and the bytes of others."""

from __future__ import annotations

import base64
import io
import json
import socket
import subprocess
from pathlib import Path

import httpx
import openai
import pytest
from PIL import Image

OPTIONS = {"api_key": "none", "max_retries": 0, "_strict_response_validation": True}
MAGIC = b"\x89PNG\r\n\x1a\n"


def png(alpha: int | None = None) -> bytes:
    picture = Image.new("RGB", (64, 64), (200, 0, 0))
    if alpha is not None:
        picture.putalpha(alpha)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()


@pytest.fixture
def sdk(live):
    with openai.OpenAI(base_url=f"{live}/v1", **OPTIONS) as client:
        yield client


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(PNG)
    return tmp_path / "a.png"


# --- OpenAI's SDK -----------------------------------------------------------------------------------------------------


def test_one_file_through_the_sdk(sdk, service, path):
    with path.open("rb") as file:
        answer = sdk.images.edit(model="editor", image=file, prompt="x", n=2, size="auto", extra_body={"seed": 5})
    assert [base64.b64decode(item.b64_json)[:8] for item in answer.data] == [MAGIC, MAGIC]
    assert (answer.size, answer.usage) == ("64x64", None)
    assert [image.seed for image in service.requests[0].images] == [5, 6]


def test_bare_bytes_through_the_sdk(sdk, service):
    """T49: they come as ``upload``, of type ``application/octet-stream``."""
    sdk.images.edit(model="editor", image=PNG, prompt="x", user="u", input_fidelity="high")
    assert list(service.requests[0].uploads) == ["image"]


def test_a_list_through_the_sdk(sdk, service):
    sdk.images.edit(model="instructor", image=[PNG, ("b.png", PNG), PNG], prompt="x")
    assert list(service.requests[0].uploads) == ["image", "image_1", "image_2"]


def test_a_mask_through_the_sdk(sdk, service):
    sdk.images.edit(model="editor", image=PNG, mask=png(alpha=0), prompt="x")
    assert list(service.requests[0].uploads) == ["image", "mask_image"]


def test_a_stream_through_the_sdk(sdk):
    with sdk.images.edit(model="editor", image=PNG, prompt="x", stream=True, partial_images=2) as stream:
        events = list(stream)
    assert [event.type for event in events] == [
        *["image_edit.partial_image"] * 2,
        "image_edit.completed",
    ]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert events[-1].size == "64x64"


async def test_the_async_sdk(live):
    async with openai.AsyncOpenAI(base_url=f"{live}/v1", **OPTIONS) as client:
        answer = await client.images.edit(model="editor", image=("x.png", PNG, "image/png"), prompt="x")
    assert base64.b64decode(answer.data[0].b64_json).startswith(MAGIC)


def test_errors_through_the_sdk(sdk):
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.images.edit(model="editor", image=b"no picture", prompt="x")
    assert (bad.value.code, bad.value.param, bad.value.type) == (
        *("invalid_image", "image"),
        "image_generation_user_error",
    )
    with pytest.raises(openai.BadRequestError) as nested:
        sdk.images.edit(model="editor", image=PNG, prompt="x", extra_body={"lora": [{"path": "a", "scale": 0.5}]})
    assert (nested.value.code, nested.value.param) == ("unknown_parameter", "lora[][path]")
    with pytest.raises(openai.NotFoundError) as gone:
        sdk.images.create_variation(image=PNG)
    assert gone.value.code == "unknown_url"


def test_a_stream_that_is_refused_through_the_sdk(sdk):
    with pytest.raises(openai.BadRequestError):
        sdk.images.edit(model="tiny", image=PNG, prompt="x", stream=True)


# --- curl -------------------------------------------------------------------------------------------------------------


def curl(*arguments: str) -> dict:
    command = ["curl", "--silent", "--show-error", "--max-time", "20", *arguments]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout)


def test_curl(live, service, path):
    url = f"{live}/v1/images/edits"
    common = ("-F", "model=editor", "-F", "prompt=x")
    for more in ((), ("-H", "transfer-encoding: chunked"), ("-H", "expect: 100-continue")):
        answer = curl(url, *common, "-F", f"image=@{path}", *more)
        assert base64.b64decode(answer["data"][0]["b64_json"]).startswith(MAGIC)
    assert len(service.requests) == 3


def test_curl_with_too_large_a_file(live, path):
    path.write_bytes(bytes(51 << 20))
    for more in ((), ("-H", "transfer-encoding: chunked")):
        answer = curl(f"{live}/v1/images/edits", "-F", "prompt=x", "-F", f"image=@{path}", *more)
        assert (answer["error"]["code"], answer["error"]["param"]) == ("request_too_large", "image")


# --- others, as they were read or run ---------------------------------------------------------------------------------

OPEN_WEBUI = {"model": "editor", "prompt": "x", "n": "1", "size": "64x64", "response_format": "b64_json"}


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_open_webui(live, service, name):
    """Every value through ``str()``, and Azure's query."""
    answer = httpx.post(
        f"{live}/v1/images/edits?api-version=2025-04-01",
        data=OPEN_WEBUI | {"seed": "3", "steps": "4", "user": "None"},
        files=[(name, ("image.png", io.BytesIO(PNG), "image/png"))],
        headers={"authorization": "Bearer x"},
    )
    assert answer.json()["data"][0]["b64_json"]
    assert (service.requests[0].images[0].seed, service.requests[0].images[0].num_inference_steps) == (3, 4)


@pytest.mark.parametrize(("model", "name"), [("gpt-image-1", "image[]"), ("editor", "image")])
def test_n8n(live, service, settings, model, name):
    settings.model_aliases["gpt-image-1"] = "editor"
    answer = httpx.post(
        f"{live}/v1/images/edits",
        data={"model": model, "prompt": "x", "n": "1", "size": "auto", "quality": "auto", "background": "auto"}
        | ({"input_fidelity": "low", "output_format": "png"} if model == "gpt-image-1" else {"response_format": "url"}),
        files=[(name, ("data.png", PNG, "image/png"))],
    )
    assert list(answer.json()["data"][0]) == (["b64_json"] if model == "gpt-image-1" else ["url"])


def raw(live: str, head: bytes, body: bytes) -> tuple[bytes, dict]:
    """Status line and body of the answer to these very bytes."""
    host, port = live.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/images/edits HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + head + b"\r\n" + body
        )
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    status, _, rest = answer.partition(b"\r\n")
    return status, json.loads(rest.partition(b"\r\n\r\n")[2])


def form(boundary: str, *parts: tuple[str, bytes]) -> bytes:
    pieces = [
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + value + b"\r\n"
        for head, value in parts
    ]
    return b"".join(pieces) + f"--{boundary}--\r\n".encode()


def test_librechat(live, service):
    """A chunked form without a length, and a key in ``api-key`` only."""
    body = form(
        "--------------------------515890814546601021194782",
        ('name="model"', b"editor"),
        ('name="prompt"', b"make it blue"),
        ('name="quality"', b"auto"),
        ('name="size"', b"auto"),
        ('name="n"', b"1"),
        ('name="image[]"; filename="a.png"\r\nContent-Type: image/png', PNG),
    )
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(body[i : i + 100]), body[i : i + 100]) for i in range(0, len(body), 100))
    head = b"content-type: multipart/form-data; boundary=--------------------------515890814546601021194782\r\n"
    status, answer = raw(live, head + b"api-key: k\r\ntransfer-encoding: chunked\r\n", chunks + b"0\r\n\r\n")
    assert status == b"HTTP/1.1 200 OK"
    assert answer["data"][0]["b64_json"]
    assert service.requests[0].images[0].prompt == "make it blue"


def test_the_ai_sdk(live, service):
    """undici's form: files are called ``blob``."""
    boundary = "----formdata-undici-042197283648"
    body = form(
        boundary,
        ('name="model"', b"instructor"),
        ('name="prompt"', b"x"),
        *[('name="image"; filename="blob"\r\nContent-Type: image/png', PNG)] * 2,
        ('name="n"', b"1"),
        ('name="size"', b"64x64"),
    )
    head = f"content-type: multipart/form-data; boundary={boundary}\r\ncontent-length: {len(body)}\r\n".encode()
    status, _ = raw(live, head, body)
    assert status == b"HTTP/1.1 200 OK"
    assert list(service.requests[0].uploads) == ["image", "image_1"]


def test_a_client_that_leaves_while_it_sends_leaves_nothing(live, service):
    body = form("x", ('name="image"; filename="a"', bytes(3 << 20)))
    host, port = live.removeprefix("http://").split(":")
    head = b"POST /v1/images/edits HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=x\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body[: 2 << 20])
    with openai.OpenAI(base_url=f"{live}/v1", **OPTIONS) as client:  # the server still answers
        client.images.edit(model="editor", image=PNG, prompt="after")
    assert [request.images[0].prompt for request in service.requests] == ["after"]

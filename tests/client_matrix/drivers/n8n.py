"""Requests as the OpenAI node of n8n sends them: models are those of the list that it takes for picture models."""

from __future__ import annotations

import httpx
from harness import (
    KEY,
    MASK,
    ONE_MODEL_KEY,
    ONE_PICTURE_KEY,
    OTHER,
    PICTURE,
    PROMPT,
    SEVERAL,
    SPENT_KEY,
    cannot,
    case,
    gave_up,
    run,
)
from raw import drawn, refused, send

HEADERS = {"Authorization": f"Bearer {KEY}"}


def generate(door="url", key=KEY, timeout=120, **options):
    """Every model but ``gpt-image-*`` is told which form the answer is to have."""
    body = {"prompt": PROMPT, "model": "dall-e-2", "response_format": "b64_json", "n": 1, "size": "256x256"} | options
    if body["model"].startswith("gpt-image"):
        del body["response_format"]
    headers = {"Authorization": f"Bearer {key}"}
    return send("POST", "images/generations", door, json=body, headers=headers, timeout=timeout)


def part(path):
    return path.name, path.read_bytes(), "image/png"


def edit(files, model="gpt-image-1"):
    """A list of pictures for ``gpt-image-1``, one and a form of answer for ``dall-e-2``."""
    more = {"quality": "auto"} if model.startswith("gpt-image") else {"response_format": "b64_json"}
    data = {"prompt": PROMPT, "model": model, "n": "1", "size": "256x256", **more}
    return send("POST", "images/edits", data=data, files=files, headers=HEADERS)


@case
def models():
    found = [model["id"] for model in send("GET", "models", headers=HEADERS)["data"]]
    assert [name for name in found if "dall-e" in name or "gpt-image" in name], "it would offer no model for pictures"
    return {"models": found}


@case
def files():
    content = PICTURE.read_bytes()
    upload = {"data": {"purpose": "assistants"}, "files": {"file": ("red.png", content, "image/png")}}
    kept = send("POST", "files", headers=HEADERS, **upload)
    listed = send("GET", "files", headers=HEADERS, params={"purpose": "assistants"})["data"]
    return {
        "id": kept["id"],
        "bytes": kept["bytes"],
        "sent": len(content),
        "listed": kept["id"] in [file["id"] for file in listed],
        "deleted": send("DELETE", f"files/{kept['id']}", headers=HEADERS)["deleted"],
    }


@case
def over_limit():
    return drawn(generate(key=ONE_PICTURE_KEY), asked="256x256") | refused(lambda: generate(key=ONE_PICTURE_KEY))


@case
def budget():
    spent = {"door": "budget", "key": SPENT_KEY}
    first = drawn(generate(**spent), asked="256x256")
    return first | refused(lambda: generate(**spent)) | {"tries": 2}


for name, call in {
    "generate": lambda: drawn(generate(), asked="256x256"),
    "n": lambda: drawn(generate(n=2), asked="256x256"),
    "size": lambda: drawn(generate(model="dall-e-3", quality="hd", style="natural", size="512x512"), asked="512x512"),
    "url": lambda: drawn(generate(response_format="url"), asked="256x256"),
    "b64": lambda: drawn(generate(model="gpt-image-1", quality="medium"), asked="256x256"),
    "edit": lambda: drawn(edit([("image", part(PICTURE))], model="dall-e-2"), asked="256x256"),
    "edit_list": lambda: drawn(edit([("image[]", part(PICTURE)), ("image[]", part(OTHER))], SEVERAL), asked="256x256"),
    "edit_mask": lambda: drawn(edit([("image[]", part(PICTURE)), ("mask", part(MASK))]), asked="256x256"),
    "bad_parameter": lambda: refused(lambda: generate(size="1000x1000")),
    "unknown_model": lambda: refused(lambda: generate(model="nobody")),
    "wrong_key": lambda: refused(lambda: generate(key="sk-wrong")),
    "not_allowed": lambda: refused(lambda: generate(key=ONE_MODEL_KEY)),
    "gives_up": lambda: refused(lambda: generate(door="gives_up")) | {"tries": 1},
    "abort": lambda: gave_up(lambda: generate(n=10, size="512x512", timeout=1.0), httpx.ReadTimeout),
}.items():
    case(call, name)

cannot("has no field for it", "seed", "stream", "edit_stream", "job", "once")
cannot("has no such operation", "batch")
cannot("does not try again", "full", "limited")
cannot("works one item after the other", "concurrent")
run()

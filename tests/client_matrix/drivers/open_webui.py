"""Requests as Open WebUI's engine "openai" sends them: every field of a form is text, an API version in the query."""

from __future__ import annotations

import httpx
from harness import (
    KEY,
    MASK,
    MODEL,
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
QUERY = {"api-version": "2025-04-01-preview"}


def generate(door="url", key=KEY, timeout=120, **changes):
    """``changes`` are what an administrator writes into the box for more parameters."""
    body = {"model": MODEL, "prompt": PROMPT, "n": 1, "size": "512x512", "response_format": "b64_json"} | changes
    headers = HEADERS | {"Authorization": f"Bearer {key}"}
    return send("POST", "images/generations", door, json=body, headers=headers, params=QUERY, timeout=timeout)


def part(path):
    return path.name, path.read_bytes(), "image/png"


def edit(files, model=MODEL):
    fields = {"model": model, "prompt": PROMPT, "n": 1, "size": "128x128", "response_format": "b64_json"}
    data = {name: str(value) for name, value in fields.items()}
    return send("POST", "images/edits", data=data, files=files, headers=HEADERS, params=QUERY)


@case
def over_limit():
    return drawn(generate(key=ONE_PICTURE_KEY, size="128x128")) | refused(lambda: generate(key=ONE_PICTURE_KEY))


@case
def budget():
    spent = {"door": "budget", "key": SPENT_KEY}
    first = drawn(generate(**spent, size="128x128"))
    return first | refused(lambda: generate(**spent)) | {"tries": 2}


for name, call in {
    "generate": lambda: drawn(generate(), asked="512x512"),
    "n": lambda: drawn(generate(n=2, size="128x128")),
    "size": lambda: drawn(generate(size="256x256"), asked="256x256"),
    "b64": lambda: drawn(generate(model="gpt-image-1", size="128x128")),
    "seed": lambda: drawn(*(generate(seed=7, steps=2, size="64x64") for _ in "12")),
    "edit": lambda: drawn(edit([("image", part(PICTURE))])),
    "edit_list": lambda: drawn(edit([("image[]", part(PICTURE)), ("image[]", part(OTHER))], SEVERAL)),
    "edit_mask": lambda: drawn(edit([("image", part(PICTURE)), ("mask", part(MASK))])),
    "bad_parameter": lambda: refused(lambda: generate(size="1000x1000")),
    "unknown_model": lambda: refused(lambda: generate(model="nobody")),
    "wrong_key": lambda: refused(lambda: generate(key="sk-wrong")),
    "not_allowed": lambda: refused(lambda: generate(key=ONE_MODEL_KEY)),
    "gives_up": lambda: refused(lambda: generate(door="gives_up")) | {"tries": 1},
    "abort": lambda: gave_up(lambda: generate(n=10, size="512x512", timeout=1.0), httpx.ReadTimeout),
}.items():
    case(call, name)

cannot("its own check refuses urls on private hosts", "url")
cannot("sends no such request", "stream", "edit_stream", "models", "files", "job", "batch", "once", "concurrent")
cannot("does not try again", "full", "limited")
run()

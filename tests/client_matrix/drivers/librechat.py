"""Requests as the picture tools of LibreChat send them in Azure mode: a key in ``api-key`` alone, forms in chunks."""

from __future__ import annotations

import httpx
from harness import (
    KEY,
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

QUERY = {"api-version": "2025-04-01-preview"}


def generate(door="url", key=KEY, timeout=120, **changes):
    """The model's name is fixed in the tool."""
    body = {"model": "gpt-image-1", "prompt": PROMPT, "n": 1, "background": "auto", "output_format": "png"}
    body |= {"quality": "auto", "size": "auto"} | changes
    return send("POST", "images/generations", door, json=body, headers={"api-key": key}, params=QUERY, timeout=timeout)


def edit(*paths, model="gpt-image-1"):
    fields = {"model": model, "prompt": PROMPT, "quality": "auto", "size": "auto"}
    form = httpx.Request(
        "POST",
        "http://form",
        data=fields,
        files=[("image[]", (path.name, path.read_bytes(), "image/png")) for path in paths],
    )
    pieces = (form.read()[start : start + 4096] for start in range(0, len(form.read()), 4096))  # so it goes in chunks
    headers = {"api-key": KEY, "content-type": form.headers["content-type"]}
    return send("POST", "images/edits", content=pieces, headers=headers, params=QUERY)


@case
def over_limit():
    return drawn(generate(key=ONE_PICTURE_KEY)) | refused(lambda: generate(key=ONE_PICTURE_KEY))


@case
def budget():
    spent = {"door": "budget", "key": SPENT_KEY}
    first = drawn(generate(**spent))
    return first | refused(lambda: generate(**spent)) | {"tries": 2}


for name, call in {
    "generate": lambda: drawn(generate()),
    "b64": lambda: drawn(generate()),
    "n": lambda: drawn(generate(n=2)),
    "edit": lambda: drawn(edit(PICTURE)),
    "edit_list": lambda: drawn(edit(PICTURE, OTHER, model=SEVERAL)),
    "size": lambda: drawn(generate(size="1024x1024"), asked="1024x1024"),
    "bad_parameter": lambda: refused(lambda: generate(size="1000x1000")),
    "unknown_model": lambda: refused(lambda: generate(model="nobody")),
    "wrong_key": lambda: refused(lambda: generate(key="sk-wrong")),
    "not_allowed": lambda: refused(lambda: generate(key=ONE_MODEL_KEY)),
    "gives_up": lambda: refused(lambda: generate(door="gives_up")) | {"tries": 1},
    "abort": lambda: gave_up(lambda: generate(n=10, size="512x512", timeout=1.0), httpx.ReadTimeout),
}.items():
    case(call, name)

cannot("reads b64_json alone", "url")
cannot("sends no such request", "seed", "stream", "edit_mask", "edit_stream", "models", "files", "concurrent")
cannot("sends no such request", "job", "batch", "once")
cannot("is OpenAI's SDK for Node where it tries again", "full", "limited")
run()

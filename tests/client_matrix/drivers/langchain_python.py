"""LangChain's ``DallEAPIWrapper``: prompt in, urls out."""

from __future__ import annotations

from functools import partial

import openai
from harness import (
    KEY,
    ONE_MODEL_KEY,
    ONE_PICTURE_KEY,
    PROMPT,
    SETUP,
    SPENT_KEY,
    cannot,
    case,
    gave_up,
    openai_error,
    refusal,
    run,
)
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper


def generate(**fields):
    """A model whose name asks for urls by itself: the wrapper reads nothing else and cannot ask."""
    return DallEAPIWrapper(
        **{"model": "dall-e-2", "base_url": SETUP["url"], "api_key": KEY, "size": "128x128"} | fields
    ).run(PROMPT)


def drawn(urls, **more):
    return {"pictures": [{"url": url} for url in urls.split("\n")], **more}


def refused(**fields):
    return refusal(lambda: generate(**fields), openai_error)


@case
def over_limit():
    limited = {"api_key": ONE_PICTURE_KEY, "max_retries": 0}
    return drawn(generate(**limited)) | refused(**limited)


@case
def budget():
    spent = {"api_key": SPENT_KEY, "base_url": SETUP["budget"]}
    return drawn(generate(**spent)) | refused(**spent) | {"tries": 2}


@case
def abort():
    call = partial(generate, n=10, size="512x512", timeout=1.0, max_retries=0)
    try:
        told = gave_up(call, openai.APITimeoutError)
    except openai.InternalServerError as error:
        told = {"error": openai_error(error)}
    return {"sends_timeout": True, **told}


for name, call in {
    "generate": lambda: drawn(generate()),
    "n": lambda: drawn(generate(n=2)),
    "size": lambda: drawn(generate(size="256x256"), asked="256x256"),
    "url": lambda: drawn(generate()),
    "bad_parameter": lambda: refused(size="1000x1000"),
    "unknown_model": lambda: refused(model="nobody"),
    "wrong_key": lambda: refused(api_key="sk-wrong"),
    "not_allowed": lambda: refused(api_key=ONE_MODEL_KEY),
    "full": lambda: drawn(generate(base_url=SETUP["full"])),
    "limited": lambda: drawn(generate(base_url=SETUP["limited"])),
    "gives_up": lambda: refused(base_url=SETUP["gives_up"], max_retries=1) | {"tries": 2},
}.items():
    case(call, name)

cannot("reads urls alone", "b64")
cannot("passes on neither a seed nor stream", "seed", "stream", "concurrent")
cannot("passes on no header of a request", "once")
cannot(
    "makes pictures, nothing else", "edit", "edit_list", "edit_mask", "edit_stream", "models", "files", "job", "batch"
)
run()

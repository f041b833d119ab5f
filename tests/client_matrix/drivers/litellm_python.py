"""LiteLLM as a library, towards any OpenAI-compatible server: ``openai/<model>`` and ``api_base``."""

from __future__ import annotations

import asyncio
import logging

import litellm
from harness import (
    BATCH_OVER,
    KEY,
    MASK,
    MODEL,
    ONE_MODEL_KEY,
    ONE_PICTURE_KEY,
    OTHER,
    PICTURE,
    PROMPT,
    SETUP,
    SEVERAL,
    SPENT_KEY,
    asked_until,
    batch_lines,
    cannot,
    case,
    gave_up,
    of_batch,
    pictures,
    refusal,
    run,
)

logging.disable()
litellm.suppress_debug_info = True

HERE = {"api_base": SETUP["url"], "api_key": KEY}
FILES = HERE | {"custom_llm_provider": "openai"}
QUICK = {"size": "64x64"}
SEEDS = (1, 2, 3, 4)


def arguments(**parameters):
    return {"model": f"openai/{MODEL}", "prompt": PROMPT} | HERE | parameters


def generate(**parameters):
    return litellm.image_generation(**arguments(**parameters))


def edit(**parameters):
    return litellm.image_edit(**arguments(image=PICTURE.read_bytes()) | parameters)


def drawn(*answers, **more):
    return {"pictures": [picture for answer in answers for picture in pictures(answer.data)], **more}


def describe(error):
    """LiteLLM keeps the envelope of ours, if at all, in ``body``."""
    body = getattr(error, "body", None) or {}
    known = {name: body[name] for name in ("type", "code", "param") if name in body}
    return {"status": error.status_code, "message": str(error), **known}


def refused(call):
    return refusal(call, describe)


@case
def files():
    content = PICTURE.read_bytes()
    kept = litellm.create_file(file=("red.png", content, "image/png"), purpose="batch", **FILES)
    return {
        "id": kept.id,
        "bytes": kept.bytes,
        "sent": len(content),
        "listed": kept.id in [file.id for file in litellm.file_list(**FILES)],
        "same": litellm.file_content(kept.id, **FILES).content == content,
        "deleted": litellm.file_delete(kept.id, **FILES).deleted,
    }


@case
def batch():
    lines = litellm.create_file(file=("lines.jsonl", batch_lines(MODEL), "application/jsonl"), purpose="batch", **FILES)
    begun = litellm.create_batch(
        input_file_id=lines.id, endpoint="/v1/images/generations", completion_window="24h", **FILES
    )
    ended = asked_until(lambda: litellm.retrieve_batch(begun.id, **FILES), lambda found: found.status in BATCH_OVER)
    files = (litellm.file_content(file, **FILES) for file in (ended.output_file_id, ended.error_file_id))
    output, errors = (file.content.decode() for file in files)
    counts = ended.request_counts
    return of_batch(ended.status, (counts.completed, counts.failed), output, errors)


@case
def over_limit():
    """Two pictures are more than a minute's: no retry helps, and the answer says so."""
    return drawn(generate(api_key=ONE_PICTURE_KEY)) | refused(lambda: generate(api_key=ONE_PICTURE_KEY, n=2))


@case
def budget():
    spent = {"api_key": SPENT_KEY, "api_base": SETUP["budget"]}
    return drawn(generate(**spent)) | refused(lambda: generate(**spent)) | {"tries": 2}


@case
def models():
    return {"models": litellm.get_valid_models(check_provider_endpoint=True, **FILES)}


@case
def concurrent():
    async def together():
        return await asyncio.gather(*(litellm.aimage_generation(**arguments(seed=seed, **QUICK)) for seed in SEEDS))

    return drawn(*asyncio.run(together()), *(generate(seed=seed, **QUICK) for seed in SEEDS))


@case
def abort():
    async def impatient():
        patient = arguments(n=10, size="512x512", steps=50, timeout=100_000)  # sent along; the gateway minds it
        await asyncio.wait_for(litellm.aimage_generation(**patient), 1.0)

    return gave_up(lambda: asyncio.run(impatient()), TimeoutError)


for name, call in {
    "generate": lambda: drawn(generate()),
    "n": lambda: drawn(generate(n=2)),
    "size": lambda: drawn(generate(size="192x128"), asked="192x128"),
    "url": lambda: drawn(generate(model="openai/dall-e-2")),
    "seed": lambda: drawn(*(generate(seed=7, **QUICK) for _ in "12")),
    "edit": lambda: drawn(edit()),
    "edit_list": lambda: drawn(edit(model=f"openai/{SEVERAL}", image=[PICTURE.read_bytes(), OTHER.read_bytes()])),
    "edit_mask": lambda: drawn(edit(mask=MASK.read_bytes())),
    "bad_parameter": lambda: refused(lambda: generate(size="1000x1000")),
    "unknown_model": lambda: refused(lambda: generate(model="openai/nobody")),
    "wrong_key": lambda: refused(lambda: generate(api_key="sk-wrong")),
    "not_allowed": lambda: refused(lambda: generate(api_key=ONE_MODEL_KEY)),
    "full": lambda: drawn(generate(api_base=SETUP["full"])),
    "limited": lambda: drawn(generate(api_base=SETUP["limited"])),
    "gives_up": lambda: refused(lambda: generate(api_base=SETUP["gives_up"])) | {"tries": 3},
}.items():
    case(call, name)

cannot("refuses response_format before it sends anything", "b64")
cannot("has no call that asks for a job, and makes nothing of an answer without pictures", "job")
cannot("sends extra_headers as a field of the body", "once")
cannot("has no streams of pictures", "stream", "edit_stream")
run()

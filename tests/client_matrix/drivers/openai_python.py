"""The Python SDK of OpenAI in every major version; strict about answers where its own types allow our sizes."""

from __future__ import annotations

import asyncio
import uuid

import openai
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
    case,
    gave_up,
    of_batch,
    openai_error,
    pictures,
    refusal,
    run,
)

SEEDS = (1, 2, 3, 4)
PATIENCE = 100_000
"""The SDK sends its timeout along, and the gateway admits nothing that may end later."""
QUICK = {"size": "64x64"}

strict = openai.OpenAI(base_url=SETUP["url"], api_key=KEY, timeout=PATIENCE, _strict_response_validation=True)
# 1.x and 2.x know three sizes, and refuse an answer of any other in strict mode.
client = strict if int(openai.__version__.split(".")[0]) >= 3 else openai.OpenAI(base_url=SETUP["url"], api_key=KEY)


def generate(by=client, **parameters):
    return by.images.generate(**{"model": MODEL, "prompt": PROMPT} | parameters)


def edit(**parameters):
    return client.images.edit(**{"model": MODEL, "prompt": PROMPT, "image": PICTURE} | parameters)


def drawn(*answers, **more):
    return {"pictures": [picture for answer in answers for picture in pictures(answer.data)], **more}


def streamed(events):
    events = list(events)
    return {"events": [event.type for event in events], "pictures": pictures(events)}


def refused(call):
    return refusal(call, openai_error)


@case
def size():
    return drawn(generate(strict, size="1024x1024", quality="low", extra_body={"steps": 1}), asked="1024x1024")


@case
def seed():
    return drawn(*(generate(extra_body={"seed": 7}, **QUICK) for _ in "12"))


@case
def models():
    return {"models": [model.id for model in client.models.list()], "retrieved": client.models.retrieve("org/tiny").id}


@case
def files():
    content = PICTURE.read_bytes()
    kept = client.files.create(file=("red.png", content, "image/png"), purpose="vision")
    return {
        "id": kept.id,
        "bytes": kept.bytes,
        "sent": len(content),
        "listed": kept.id in [file.id for file in client.files.list(purpose="vision")],
        "same": client.files.content(kept.id).read() == content,
        "deleted": client.files.delete(kept.id).deleted,
    }


@case
def job():
    """The SDK has no calls for jobs: its own ``get`` and ``delete`` take any path. In strict mode it would take nothing
    but pictures for an answer to ``generate``."""
    lenient = openai.OpenAI(base_url=SETUP["url"], api_key=KEY)
    posted = generate(lenient, extra_body={"async": True})
    path = f"/images/jobs/{posted.id}"
    ended = asked_until(lambda: client.get(path, cast_to=object), lambda found: found["completed_at"] is not None)
    deleted = client.delete(path, cast_to=object)["deleted"]
    afterwards = refused(lambda: client.get(path, cast_to=object))["error"]["status"]
    told = {"id": posted.id, "posted": posted.status, "ended": ended["status"], "afterwards": afterwards}
    return told | {"deleted": deleted, "pictures": pictures(ended["response"]["data"])}


@case
def batch():
    lines = client.files.create(file=("lines.jsonl", batch_lines(MODEL)), purpose="batch")
    begun = client.batches.create(input_file_id=lines.id, endpoint="/v1/images/generations", completion_window="24h")
    ended = asked_until(lambda: client.batches.retrieve(begun.id), lambda found: found.status in BATCH_OVER)
    output, errors = (client.files.content(file).text for file in (ended.output_file_id, ended.error_file_id))
    counts = ended.request_counts
    return of_batch(ended.status, (counts.completed, counts.failed), output, errors)


@case
def once():
    key = {"Idempotency-Key": str(uuid.uuid4())}
    return drawn(*(generate(extra_headers=key) for _ in "12"))


@case
def over_limit():
    """Without retries: with them the SDK waits as long as it is told to, up to a minute, and is served."""
    limited = client.with_options(api_key=ONE_PICTURE_KEY, max_retries=0)
    return drawn(generate(limited)) | refused(lambda: generate(limited))


@case
def budget():
    spent = at("budget", api_key=SPENT_KEY)
    return drawn(generate(spent)) | refused(lambda: generate(spent)) | {"tries": 2}


@case
def concurrent():
    async def together():
        async with openai.AsyncOpenAI(base_url=SETUP["url"], api_key=KEY) as eager:
            calls = [generate(eager, extra_body={"seed": number}, **QUICK) for number in SEEDS]
            return await asyncio.gather(*calls)

    return drawn(*asyncio.run(together()), *(generate(extra_body={"seed": number}, **QUICK) for number in SEEDS))


@case
def abort():
    async def impatient():
        async with openai.AsyncOpenAI(base_url=SETUP["url"], api_key=KEY, timeout=PATIENCE) as eager:
            await asyncio.wait_for(generate(eager, n=10, size="512x512", extra_body={"steps": 50}), 1.0)

    return gave_up(lambda: asyncio.run(impatient()), TimeoutError)


def at(door, **options):
    """A client of the busy door, with the retries that it has by default."""
    return openai.OpenAI(base_url=SETUP[door], **{"api_key": KEY} | options)


for name, call in {
    "generate": lambda: drawn(generate()),
    "n": lambda: drawn(generate(n=2)),
    "url": lambda: drawn(generate(response_format="url")),
    "b64": lambda: drawn(generate(response_format="b64_json")),
    "stream": lambda: streamed(generate(stream=True, partial_images=2)),
    "edit": lambda: drawn(edit()),
    "edit_list": lambda: drawn(edit(model=SEVERAL, image=[PICTURE, OTHER.read_bytes()])),
    "edit_mask": lambda: drawn(edit(mask=MASK)),
    "edit_stream": lambda: streamed(edit(stream=True, partial_images=2)),
    "bad_parameter": lambda: refused(lambda: generate(size="1000x1000")),
    "unknown_model": lambda: refused(lambda: generate(model="nobody")),
    "wrong_key": lambda: refused(lambda: generate(client.with_options(api_key="sk-wrong"))),
    "not_allowed": lambda: refused(lambda: generate(client.with_options(api_key=ONE_MODEL_KEY))),
    "full": lambda: drawn(generate(at("full"))),
    "limited": lambda: drawn(generate(at("limited"))),
    "gives_up": lambda: refused(lambda: generate(at("gives_up", max_retries=1))) | {"tries": 2},
}.items():
    case(call, name)

run()

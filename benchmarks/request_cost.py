"""Processor time that keys, limits, usage and idempotency add to a request, beside a bare FastAPI handler's own.

python -m benchmarks.request_cost [--rounds 5] [--redis redis://127.0.0.1:6379] [--without-http]

Requests come as bytes and leave as bytes through uvicorn's protocol, without sockets, and pictures cost nothing; with
``--without-http`` they go straight into the application. Time is that of the whole process, so what threads do for the
database counts. The bare handler takes the same body as the same pydantic model, and answers the same bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr
from starlette.types import ASGIApp, Message
from uvicorn.loops.auto import auto_loop_factory
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from benchmarks import bare_handler
from benchmarks.bare_handler import PATH
from benchmarks.in_process import Connection
from gateway.accounts import secrets
from gateway.accounts.caller import Caller, Limits
from gateway.accounts.keyring import KeyRing
from gateway.api.app import create_app
from gateway.api.http_protocol import HttpProtocol
from gateway.database.database import Database
from gateway.database.keys import StoredKeys
from gateway.idempotency.once import open_once
from gateway.service.interfaces import Admitted, Finished, ImageRequest, Listener, Ready, Took, unheard
from gateway.settings import Settings
from gateway.shell.assembly import limits_and_usage
from gateway.shell.garbage import spare_pauses
from gateway.storage.objects import in_memory
from wire.params import ModelInfo, Workflow
from wire.types import REQUIRED

GOAL = 0.4
"""Of a bare handler's own time, for all that is on: the issue's."""
SLICE = 50
PER_SECOND = 500
"""Requests between two batches of records; keys are looked for changes twice as often."""
BARE, OFF, KEYED, LIMITED = "a bare FastAPI handler", "the images API", "… with keys", "… and limits"
ON, ONCE = "… and usage and kept answers", "… and an Idempotency-Key each"
VARIANTS = (
    # name, limits, usage and kept answers, Idempotency-Key
    (KEYED, False, False, False),
    (LIMITED, True, False, False),
    (ON, True, True, False),
    (ONCE, True, True, True),
)
BODY = b'{"model": "m", "prompt": "a red circle", "seed": 1}'
PICTURE = bytes(1000)
MUCH = 10**9
KEYS = 100


MODEL = ModelInfo(name="m", key="m@1", family="m", dtype="bfloat16", workflows=(Workflow("text2image", ("prompt",)),))


class Service:
    """Makes its pictures of nothing."""

    def models(self) -> tuple[ModelInfo, ...]:
        return (MODEL,)

    def ready(self) -> bool:
        return True

    def status(self) -> dict[str, object]:
        return {}

    async def generate(self, request: ImageRequest, listener: Listener = unheard) -> Finished:  # noqa: ARG002
        listener(Admitted(1.0))
        for role in REQUIRED:
            listener(Took(role, 1.0))
        listener(Ready(0, PICTURE))
        return Finished((PICTURE,), ())


async def nothing() -> None:
    pass


@dataclass
class Subject:
    """An application, keys for it, and what it does beside its requests in a second with ``PER_SECOND`` of them."""

    app: ASGIApp
    keys: Sequence[str] = ("none",)
    once: bool = False
    """Every request has an ``Idempotency-Key`` of its own."""
    second: Callable[[], Awaitable[object]] = nothing
    connection: Connection | None = None
    """None: straight into the application."""

    async def ask(self, number: int) -> bytes:
        key = self.keys[number % len(self.keys)]
        headers = [(b"content-type", b"application/json"), (b"authorization", b"Bearer " + key.encode())]
        if self.once:
            headers.append((b"idempotency-key", uuid.uuid4().hex.encode()))
        if self.connection is None:
            return await post(self.app, headers)
        return await self.connection.post(PATH, headers, BODY)


@asynccontextmanager
async def with_keys(
    folder: Path, *, limits: bool, usage: bool, once: bool, redis: str | None
) -> AsyncIterator[Subject]:
    """The images API with many keys, each with every limit."""
    settings = Settings(state_dir=folder, rate_limit_url=SecretStr(redis) if redis else None)
    database = Database(settings)
    await database.open()
    stored, shown = StoredKeys(database), [secrets.new_secret() for _ in range(KEYS)]
    own = Limits(MUCH, MUCH, MUCH, 1e12) if limits else Limits()
    for number, secret in enumerate(shown):
        await stored.create(Caller(f"tenant {number}", limits=own), "", secrets.digest_of(secret.encode()), 0.0, None)
    keys = KeyRing({}, stored)
    await keys.refresh()
    shared, limiter, meter = limits_and_usage(settings, database)

    async def second() -> None:
        await meter.write()
        await keys.refresh()
        await keys.refresh()

    answers = open_once(settings, database, in_memory(), "benchmark")
    app = create_app(
        Service(), settings, keys=keys, limiter=limiter, meter=meter if usage else None, once=answers if usage else None
    )
    yield Subject(app, shown, once, second)
    await answers.close()
    if shared is not None:
        await shared.close()
    await database.close()


async def post(app: ASGIApp, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The body of the answer."""
    sent = False
    received: list[Message] = []

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # the client stays
        sent = True
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Message) -> None:
        received.append(message)

    scope = {"type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b""}
    scope |= {"headers": headers, "http_version": "1.1", "scheme": "http", "client": ("127.0.0.1", 1), "state": {}}
    await app(scope, receive, send)
    assert received[0]["status"] == 200, received
    return b"".join(message.get("body", b"") for message in received[1:])


async def slice_of(subject: Subject) -> float:
    """Processor seconds per request."""
    began = time.process_time()
    for number in range(SLICE):
        await subject.ask(number)
        await asyncio.sleep(0)  # as between requests of a server
    return (time.process_time() - began) / SLICE


async def second_of(subject: Subject) -> float:
    """Processor seconds per request of what is done once a second."""
    began = time.process_time()
    await subject.second()
    return (time.process_time() - began) / PER_SECOND


async def measure(rounds: int, redis: str | None, *, http: bool = True) -> dict[str, float]:
    """Processor seconds per request."""
    async with AsyncExitStack() as stack:

        def folder() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory()))

        off = Subject(create_app(Service(), Settings(state_dir=folder())))
        answer = await off.ask(0)
        subjects = {BARE: Subject(bare_handler.app(answer)), OFF: off}
        for name, limits, usage, once in VARIANTS:
            opened = with_keys(folder(), limits=limits, usage=usage, once=once, redis=redis)
            subjects[name] = await stack.enter_async_context(opened)
        for name, subject in subjects.items() if http else ():
            subject.connection = Connection(subject.app, HttpToolsProtocol if name == BARE else HttpProtocol)
        for subject in subjects.values():
            for _ in range(4):
                await slice_of(subject)
            await second_of(subject)
        spare_pauses()  # as the gateway does
        # Slices are short and take turns: what else the machine does hits all of them, and of each the best counts.
        slices, seconds = [], []
        for _ in range(rounds):
            slices += [[await slice_of(each) for each in subjects.values()] for _ in range(PER_SECOND // SLICE)]
            seconds.append([await second_of(each) for each in subjects.values()])
        return {
            name: min(part[index] for part in slices) + min(part[index] for part in seconds)
            for index, name in enumerate(subjects)
        }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help=f"of {PER_SECOND} requests each")
    parser.add_argument("--redis", metavar="URL", help="share the limits there")
    parser.add_argument("--without-http", action="store_true", help="straight into the application")
    chosen = parser.parse_args(arguments)
    logging.disable(logging.INFO)  # a line per request, on as well as off
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:  # as the gateway has it
        found = runner.run(measure(chosen.rounds, chosen.redis, http=not chosen.without_http))
    for name, taken in found.items():
        print(f"{name:32}{taken * 1e6:8.0f} µs of processor time per request")
    share = (found[ON] - found[OFF]) / found[BARE]
    print(f"what keys, limits, usage and idempotency add: {share:.2f} of the bare handler's own (goal: {GOAL})")


if __name__ == "__main__":
    main()

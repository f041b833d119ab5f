"""Processor time that keys, limits and usage add to a request, beside what a bare FastAPI handler takes in all.

python -m benchmarks.request_cost [--requests 2000] [--rounds 5] [--redis redis://127.0.0.1:6379]

Requests go straight into the application, without sockets, and pictures cost nothing. Time is that of the whole
process, so what threads do for the database counts. Of several rounds, in turns, the best of each counts.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message

from gateway.accounts import secrets
from gateway.accounts.caller import Caller, Limits
from gateway.accounts.keyring import KeyRing
from gateway.api.app import create_app
from gateway.database.database import Database
from gateway.database.keys import StoredKeys
from gateway.service.interfaces import Admitted, Finished, ImageRequest, Listener, Ready, Took, unheard
from gateway.settings import Settings
from gateway.shell.assembly import limits_and_usage
from wire.params import ModelInfo, Workflow
from wire.types import Role

GOAL = 0.4
"""Of a bare handler's own time, for all that is on: the issue's."""
PATH = "/v1/images/generations"
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
        for role in Role:
            listener(Took(role, 1.0))
        listener(Ready(0, PICTURE))
        return Finished((PICTURE,), ())


def bare() -> FastAPI:
    app = FastAPI()

    @app.post(PATH)
    async def handler(request: Request) -> Response:
        return Response(await request.body(), media_type="application/json")

    return app


@asynccontextmanager
async def everything(folder: Path, redis: str | None) -> AsyncIterator[tuple[ASGIApp, list[str]]]:
    """With as many keys, each with every limit, as there are secrets."""
    settings = Settings(state_dir=folder, rate_limit_url=SecretStr(redis) if redis else None)
    database = Database(settings)
    await database.open()
    stored, shown = StoredKeys(database), [secrets.new_secret() for _ in range(KEYS)]
    for number, secret in enumerate(shown):
        caller = Caller(f"tenant {number}", limits=Limits(MUCH, MUCH, MUCH, 1e12))
        await stored.create(caller, "benchmark", secrets.digest_of(secret.encode()), time.time(), None)
    keys = KeyRing({}, stored)
    await keys.refresh()
    shared, limiter, meter = limits_and_usage(settings, database)
    async with asyncio.TaskGroup() as tasks:
        loops = [keys.run(), meter.run(), *([shared.run()] if shared is not None else [])]
        running = [tasks.create_task(loop) for loop in loops]
        yield create_app(Service(), settings, keys=keys, limiter=limiter, meter=meter), shown
        for task in running:
            task.cancel()
    await meter.write()
    await database.close()


async def post(app: ASGIApp, key: str) -> None:
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

    headers = [(b"content-type", b"application/json"), (b"authorization", b"Bearer " + key.encode())]
    scope = {"type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b""}
    scope |= {"headers": headers, "http_version": "1.1", "scheme": "http", "client": ("127.0.0.1", 1), "state": {}}
    await app(scope, receive, send)
    assert received[0]["status"] == 200, received


async def microseconds(app: ASGIApp, keys: Sequence[str], requests: int) -> float:
    """Of processor time per request, until what was recorded is written."""
    for key in keys:
        await post(app, key)
    gc.collect()
    began = time.process_time()
    for number in range(requests):
        await post(app, keys[number % len(keys)])
        await asyncio.sleep(0)  # as between requests of a server
    await asyncio.sleep(1.5)  # a batch of records is written every second
    return (time.process_time() - began) / requests * 1e6


async def measure(requests: int, rounds: int, redis: str | None) -> dict[str, float]:
    best = dict.fromkeys(("bare", "off", "on"), float("inf"))
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            off = create_app(Service(), Settings(state_dir=Path(folder)))
            found = {"bare": await microseconds(bare(), ["k"], requests)}
            found["off"] = await microseconds(off, ["k"], requests)
            async with everything(Path(folder), redis) as (on, shown):
                found["on"] = await microseconds(on, shown, requests)
        best = {name: min(best[name], found[name]) for name in best}
    return best


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--redis", metavar="URL", help="share the limits there")
    chosen = parser.parse_args(arguments)
    logging.disable(logging.INFO)  # a line per request, on as well as off
    found = asyncio.run(measure(chosen.requests, chosen.rounds, chosen.redis))
    share = (found["on"] - found["off"]) / found["bare"]
    print(f"a bare FastAPI handler{found['bare']:40.0f} µs of processor time per request")
    print(f"the images API, no keys, limits or usage{found['off']:22.0f} µs")
    print(f"the images API with all of them{found['on']:31.0f} µs")
    print(f"what they add, of the bare handler's own{share:22.2f} (goal: {GOAL} with idempotency)")


if __name__ == "__main__":
    main()

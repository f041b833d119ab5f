"""Requests leave at their time, and what comes of them is kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import httpx

from clients.api import Call
from clients.load.arrivals import Planned
from clients.load.kinds import Kind
from clients.load.sending import Outcome, Sender, Tally
from tests.clients.conftest import B64, completed, event

Answer = Callable[[httpx.Request], Awaitable[httpx.Response]]


class ManualClock:
    """Time passes when somebody waits for it, then too much by ``late``."""

    def __init__(self, late: float = 0.0) -> None:
        self._now = 0.0
        self._late = late
        self.waited: list[float] = []

    def now(self) -> float:
        return self._now

    async def until(self, at: float) -> None:
        self.waited.append(at)
        self._now = max(self._now, at + self._late)

    def advance(self, seconds: float) -> None:
        self._now += seconds


def plan(*times: float, kind: Kind | None = None) -> list[Planned]:
    return [Planned(at, kind or Kind("x", Call({"prompt": "x"})), seed) for seed, at in enumerate(times)]


def sender(clock: ManualClock, answer: Answer, retries: int = 0, timeout: float = 60.0) -> Sender:
    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return Sender(client, "http://gateway/v1", Tally(), clock, timeout, retries)


def picture(**headers: str) -> httpx.Response:
    return httpx.Response(200, json={"data": [{"b64_json": B64}]}, headers=headers)


def full(**headers: str) -> httpx.Response:
    return httpx.Response(503, json={"error": {"message": "Full.", "code": "full"}}, headers=headers)


async def test_latency_counts_from_the_schedule_and_not_from_when_it_left() -> None:
    clock = ManualClock(late=2.0)

    async def answer(_: httpx.Request) -> httpx.Response:
        clock.advance(3.0)
        return picture(**{"x-predicted-wait-ms": "2500"})

    sending = sender(clock, answer)
    await sending.open(plan(10.0))
    assert sending.tally.outcomes == [
        Outcome("x", at=10.0, late=2.0, seconds=5.0, status=200, service_seconds=3.0, predicted_seconds=2.5)
    ]


async def test_slow_answers_hold_nobody_back() -> None:
    sent: list[int] = []
    all_sent = asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content)["seed"])
        if len(sent) == 3:
            all_sent.set()
        await all_sent.wait()  # none is answered before the last has left
        return picture()

    sending = sender(ManualClock(), answer)
    await sending.open(plan(0.0, 1.0, 2.0))
    assert sent == [0, 1, 2]
    assert all(outcome.succeeded for outcome in sending.tally.outcomes)


async def test_closed_loops_keep_so_many_under_way_until_time_is_up() -> None:
    clock, under_way, most = ManualClock(), 0, 0

    async def answer(_: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        clock.advance(1.0)
        under_way -= 1
        return picture()

    sending = sender(clock, answer)
    await sending.closed(iter(plan(*[0.0] * 100)), 3, seconds=10.0)
    assert most == 3
    assert 10 <= sending.tally.sent <= 12
    assert all(outcome.late == 0 for outcome in sending.tally.outcomes)


async def test_a_refusal_is_tried_again_when_it_says_to_and_its_wait_counts() -> None:
    clock, answers = ManualClock(), [full(**{"retry-after": "4"}), full(**{"retry-after": "5"}), picture(), full()]

    async def answer(_: httpx.Request) -> httpx.Response:
        return answers.pop(0)

    sending = sender(clock, answer, retries=2)
    await sending.open(plan(1.0))
    (outcome,) = sending.tally.outcomes
    assert (outcome.succeeded, outcome.attempts, outcome.seconds, outcome.service_seconds) == (True, 3, 9.0, 0.0)
    sending.tally.outcomes.clear()
    await sending.open(plan(10.0))  # refused without a word of when to come again
    (outcome,) = sending.tally.outcomes
    assert (outcome.status, outcome.code, outcome.attempts) == (503, "full", 1)


async def test_streams_tell_their_prediction_and_first_preview() -> None:
    clock = ManualClock()

    async def answer(_: httpx.Request) -> httpx.Response:
        clock.advance(1.0)
        partial = event("image_generation.partial_image", b64_json=B64, partial_image_index=0)
        frames = b": admitted, predicted 2.00 s\n\n" + partial + completed()
        return httpx.Response(200, content=frames, headers={"content-type": "text/event-stream; charset=utf-8"})

    sending = sender(clock, answer)
    await sending.open(plan(0.0, kind=Kind("x", Call({"stream": True}), slo_seconds=3.0)))
    (outcome,) = sending.tally.outcomes
    assert (outcome.predicted_seconds, outcome.first_partial_seconds, outcome.slo_seconds) == (2.0, 1.0, 3.0)


async def test_every_way_to_fail_has_a_code() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        match json.loads(request.content)["seed"]:
            case 0:
                raise httpx.ConnectError("nobody there")
            case 1:
                return httpx.Response(200, json={"data": []})
            case 2:
                content = event("error", error={"message": "Broke.", "code": "server_error"})
                return httpx.Response(200, content=content, headers={"content-type": "text/event-stream"})
            case 3:
                return httpx.Response(502, text="Bad gateway")
        await asyncio.Event().wait()
        raise AssertionError

    sending = sender(ManualClock(), answer, timeout=0.05)
    await sending.open(plan(*map(float, range(5))))
    outcomes = sorted(sending.tally.outcomes, key=lambda outcome: outcome.at)
    assert [(o.status, o.code) for o in outcomes] == [
        (0, "ConnectError"),
        (200, "malformed"),
        (200, "server_error"),
        (502, "unreadable"),
        (0, "timeout"),
    ]
    assert not any(outcome.succeeded for outcome in outcomes)

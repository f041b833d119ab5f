"""Sends a plan, open-loop or closed-loop, and keeps what came of every request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Protocol

import httpx

from clients.api import open_client, send
from clients.events import Admitted, Malformed, Partial, Refused
from clients.load.arrivals import Planned


@dataclass(frozen=True, slots=True)
class Outcome:
    kind: str
    at: float
    """When it should have left, seconds from the start."""
    late: float
    """How much later it left: the fault of this program and its machine."""
    seconds: float
    """From ``at``, not from when it left, until its answer was complete or given up."""
    status: int
    """0: no answer."""
    code: str = ""
    """Of the error, also of one in a stream that began with 200."""
    attempts: int = 1
    service_seconds: float = 0.0
    """Of the last attempt alone; this is what a prediction is about."""
    predicted_seconds: float | None = None
    first_partial_seconds: float | None = None
    """From ``at``."""
    slo_seconds: float | None = None
    pictures: int = 1

    @property
    def succeeded(self) -> bool:
        return self.status == 200 and not self.code


@dataclass
class Tally:
    """What is known so far."""

    sent: int = 0
    outcomes: list[Outcome] = field(default_factory=list)


class Clock(Protocol):
    def now(self) -> float:
        """Seconds from the start."""

    async def until(self, at: float) -> None: ...


class WallClock:
    def __init__(self) -> None:
        self._start = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._start

    async def until(self, at: float) -> None:
        await asyncio.sleep(max(0.0, at - self.now()))


@dataclass
class Sender:
    client: httpx.AsyncClient
    url: str
    """Ends in ``/v1``."""
    tally: Tally
    clock: Clock
    timeout_seconds: float
    """From when a request leaves until it is given up, retries included."""
    retries: int = 0
    """Of requests that were refused with a ``Retry-After``, which is waited for."""

    async def open(self, plan: Iterable[Planned]) -> None:
        """Requests leave when their time has come, however slow the answers are."""
        async with asyncio.TaskGroup() as group:
            for planned in plan:
                await self.clock.until(planned.at)
                group.create_task(self._one(planned))

    async def closed(self, plan: Iterator[Planned], concurrency: int, seconds: float | None) -> None:
        """So many at a time: each answer lets the next request leave, none after ``seconds``."""

        async def work() -> None:
            for planned in plan:
                now = self.clock.now()
                if seconds is not None and now >= seconds:
                    return
                await self._one(replace(planned, at=now))

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())

    async def _one(self, planned: Planned) -> None:
        self.tally.sent += 1
        left = self.clock.now()
        outcome = Outcome(planned.kind.name, planned.at, left - planned.at, 0.0, 0, "timeout")
        outcome = replace(outcome, slo_seconds=planned.kind.slo_seconds, pictures=planned.call.pictures)
        try:
            async with asyncio.timeout(self.timeout_seconds):
                for attempt in range(1, self.retries + 2):
                    outcome, again = await self._attempt(planned, replace(outcome, attempts=attempt))
                    if again is None or attempt > self.retries:
                        break
                    await self.clock.until(self.clock.now() + again)
        except TimeoutError:
            outcome = replace(outcome, status=0, code="timeout")
        self.tally.outcomes.append(replace(outcome, seconds=self.clock.now() - planned.at))

    async def _attempt(self, planned: Planned, outcome: Outcome) -> tuple[Outcome, float | None]:
        """With the seconds after which the server wants it again, if it does."""
        left, predicted, first, retry = self.clock.now(), None, None, None
        status, code = 200, ""
        try:
            async with aclosing(send(self.client, self.url, planned.call)) as answer:
                async for news in answer:
                    match news:
                        case Admitted(seconds):
                            predicted = seconds
                        case Partial() if first is None:
                            first = self.clock.now() - planned.at
        except Refused as error:
            status, code, retry = error.status, error.code or "unnamed", error.retry_after_seconds
        except Malformed:
            code = "malformed"
        except httpx.HTTPError as error:
            status, code = 0, type(error).__name__
        took = self.clock.now() - left
        known = replace(outcome, status=status, code=code, service_seconds=took)
        return replace(known, predicted_seconds=predicted, first_partial_seconds=first), retry


async def run(url: str, plan: Iterable[Planned], *, timeout_seconds: float) -> list[Outcome]:
    """Send ``plan``, sorted by time, to ``url`` (ending in ``/v1``); the outcomes in order of their times."""
    tally = Tally()
    async with open_client(timeout_seconds) as client:
        await Sender(client, url, tally, WallClock(), timeout_seconds).open(plan)
    return sorted(tally.outcomes, key=lambda outcome: outcome.at)

"""A steady load of every kind of request, by clients that behave as good ones do: they go to another gateway when one
is not there, and send again what may be sent again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from itertools import count
from random import Random
from typing import Any

import httpx

from stage_server.engine.blank_pictures import blank_png
from tests.chaos.asking import Answer, Asker, Wish
from tests.chaos.record import Asked, Attempt, End

SIZES = ((64, 64), (96, 64), (64, 128), (256, 256))
KINDS = {"plain": 30, "url": 10, "stream": 15, "edit": 10, "job": 15, "leaves": 10, "short": 10}
"""Kind → its share."""
KEYED = 0.6
"""Share that has an Idempotency-Key."""
SEEDED = 0.5
MOST_ATTEMPTS = 60
LONGEST = 150.0
"""Seconds until a client gives up, jobs too."""
LOOK_SECONDS = 0.5
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
"""Before a request is sent again: each time double. All clients and proxies are one process, which a storm would
break."""
MOST_UNDER_WAY = 40
"""Requests; while there are so many, none is started."""

Ask = Callable[[str, Answer], Awaitable[Any]]


class Load:
    def __init__(self, http: httpx.AsyncClient, urls: list[str], chance: Random) -> None:
        self._clock = asyncio.get_running_loop().time
        self._asker = Asker(http, urls, self._clock)
        self._chance = chance
        self._numbers = count(1)
        self._picture = blank_png(64, 64)
        self._tasks: set[asyncio.Task[None]] = set()
        self.asked: list[Asked] = []
        self.wishes: dict[int, Wish] = {}
        self.gave_up: list[str] = []

    @property
    def under_way(self) -> int:
        return len(self._tasks)

    async def run(self, rate: float) -> None:
        """Until cancelled: requests leave at their time, whatever becomes of others, unless too many wait."""
        began = self._clock()
        for sent in count(1):
            if self.under_way < MOST_UNDER_WAY:
                self.start(self._chance.choices(list(KINDS), list(KINDS.values()))[0])
            await asyncio.sleep(max(0.0, began + sent / rate - self._clock()))

    def start(self, kind: str) -> Asked:
        wish = self._wish(kind)
        asked = Asked(wish.number, kind, wish.key)
        self.asked.append(asked)
        self.wishes[wish.number] = wish
        stay = self._chance.uniform(0, 1.5) if kind == "leaves" else None
        task = asyncio.create_task(self._serve(asked, wish, stay), name=f"request {wish.number}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return asked

    async def finish(self) -> None:
        """Every request that was started is over."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LONGEST + 60)

    def _wish(self, kind: str) -> Wish:
        number, chance = next(self._numbers), self._chance
        steps = 2 if kind == "short" else chance.choice((4, 10, 20, 20, 60))
        keyed = kind != "leaves" and chance.random() < KEYED
        seed = chance.randrange(2**40) if chance.random() < SEEDED else None
        n = 1 if kind == "short" else chance.choice((1, 1, 2, 3))
        return Wish(number, chance.choice(SIZES), n, steps, seed, f"key-{number}" if keyed else "")

    def _ask(self, kind: str, wish: Wish) -> Callable[[str, Answer], Coroutine[Any, Any, Any]]:
        match kind:
            case "url":
                return partial(self._asker.by_url, wish)
            case "stream":
                return partial(self._asker.stream, wish)
            case "edit":
                return lambda url, answer: self._asker.edit(wish, url, answer, self._picture)
            case "job":
                return partial(self._asker.post_job, wish)
            case _:
                return partial(self._asker.plain, wish)

    async def _serve(self, asked: Asked, wish: Wish, stay: float | None) -> None:
        answer = await self._insist(asked, self._ask(asked.kind, wish), bool(wish.key), stay)
        if asked.kind == "job" and asked.last.end is End.ANSWERED:
            await self._await_job(asked, wish, answer.job)
        asked.is_over = True

    async def _insist(self, asked: Asked, ask: Any, may_repeat: bool, stay: float | None = None) -> Answer:
        """Until there is an answer, or the request may not be sent again."""
        until, gateway = self._clock() + LONGEST, self._chance.randrange(len(self._asker.urls))
        while True:
            made, answer = await self._asker.attempt(gateway, ask, stay)
            asked.attempts.append(made)
            if not self._goes_on(made, may_repeat) or len(asked.attempts) >= MOST_ATTEMPTS or self._clock() > until:
                return answer
            gateway = (gateway + 1) % len(self._asker.urls)
            pause = max(answer.retry_after, FIRST_PAUSE * 2 ** len(asked.attempts))
            await asyncio.sleep(self._chance.uniform(0.5, 1.0) * min(LONGEST_PAUSE, pause))

    @staticmethod
    def _goes_on(made: Attempt, may_repeat: bool) -> bool:
        match made.end:
            case End.UNREACHED:
                return True
            case End.REFUSED:
                return made.status == 503 or (may_repeat and made.status >= 500)
            case End.BROKEN:
                return may_repeat
            case _:
                return False

    async def _await_job(self, asked: Asked, wish: Wish, job: str) -> None:
        """What was accepted with 202 is done, whichever gateway is asked for it, and however many were killed."""
        until = self._clock() + LONGEST
        told: dict[str, Any] = {}

        async def look(url: str, answer: Answer) -> None:
            nonlocal told
            told = await self._asker.look_at_job(job, url, answer)
            if told["status"] == "completed":
                await self._asker.take_job(wish, told, httpx.Headers(), answer)

        while told.get("completed_at") is None:
            if self._clock() > until:
                now = self._clock()
                asked.attempts.append(Attempt(0, now - LONGEST, now, End.HUNG, code=f"{job} is {told.get('status')}"))
                return
            await asyncio.sleep(LOOK_SECONDS)
            looked = Asked(asked.number, "look")
            await self._insist(looked, look, may_repeat=True)
            asked.attempts.extend(self._worth_keeping(looked, told))
        if told["status"] == "completed":
            await self._insist(
                Asked(asked.number, "delete"), partial(self._asker.delete, f"/v1/images/jobs/{job}"), True
            )
        else:
            asked.attempts.append(self._failed(asked, told))

    @staticmethod
    def _worth_keeping(looked: Asked, told: dict[str, Any]) -> list[Attempt]:
        """Of many looks only those that say something: what went wrong, and the end."""
        is_over = told.get("completed_at") is not None
        return [made for made in looked.attempts if made.end is not End.ANSWERED or made.complaints or is_over]

    def _failed(self, asked: Asked, told: dict[str, Any]) -> Attempt:
        """A job that ended with an error: honest, if it names one that is."""
        now, error = self._clock(), told.get("error") or {}
        status = {"timeout": 504, "server_error": 500}.get(str(error.get("code")), 503)
        return Attempt(asked.last.gateway, now, now, End.REFUSED, status, str(error.get("code")))

    # --- at the end -----------------------------------------------------------------------------------------------

    async def ask_again(self, most: int) -> int:
        """Keys that were answered, sent once more: each must have the same pictures. How many were asked."""
        keyed = [each for each in self.asked if each.key and each.kind != "job" and each.last.end is End.ANSWERED]
        chosen = self._chance.sample(keyed, min(most, len(keyed)))
        for each in chosen:
            await self._insist(each, self._ask(each.kind, self.wishes[each.number]), True)
        return len(chosen)

    async def clear_up(self) -> list[str]:
        """Delete jobs that nobody waits for: those whose 202 was lost with its gateway. What does not end or go."""
        until, found = self._clock() + LONGEST, []

        async def list_jobs(url: str, answer: Answer) -> None:
            nonlocal found
            found = await self._asker.list_jobs(url, answer)

        while self._clock() < until:
            await self._insist(Asked(0, "list"), list_jobs, True)
            for job in found:
                if job["completed_at"] is not None:
                    path = f"/v1/images/jobs/{job['id']}"
                    await self._insist(Asked(0, "delete"), partial(self._asker.delete, path), True)
            if not found:
                return []
            await asyncio.sleep(LOOK_SECONDS)
        return [f"job {job['id']} is left over, {job['status']}" for job in found]

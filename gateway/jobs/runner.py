"""Runs jobs: takes them from the database, has them done, writes down how they ended. One per gateway.

Whatever it does, it does under an attempt that others may have overtaken: an end counts only if the database says so.
Where the database or the file store fails, it waits for them; what has been made is kept meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeVar

from gateway.database.errors import DatabaseError, level_of
from gateway.database.job_queue import Attempt, JobQueue, Lane
from gateway.database.jobs import Ending, JobRecord, Jobs, JobStatus
from gateway.database.unbroken import unbroken
from gateway.jobs.bell import Bell
from gateway.jobs.endings import Endings
from gateway.jobs.live import Live
from gateway.jobs.owner import Owner
from gateway.jobs.turns import allot
from gateway.jobs.work import Failure, Fate, Made, Postponed, Work
from gateway.storage.job_pictures import JobPictures
from gateway.storage.objects import StoreError

ROUND_SECONDS = 1.0
"""Between two looks at the database, for what other gateways did there; what this one posts is seen at once."""
LEASE_SECONDS = 30.0
"""After a gateway's death, when others take its jobs. Clocks may differ by a third of it."""
RENEW_SECONDS = LEASE_SECONDS / 3
RETRY_SECONDS = 1.0
"""For the database or the store to come back."""
OVERDUE_AT_ONCE = 100

Result = TypeVar("Result")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Places:
    """Jobs that the scheduler knows at a time, of this gateway."""

    jobs: int
    batch_lines: int


class Runner:
    def __init__(
        self,
        jobs: Jobs,
        queue: JobQueue,
        owner: Owner,
        pictures: JobPictures,
        work: Work,
        places: Places,
        endings: Endings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._jobs = jobs
        self._queue = queue
        self._owner = owner
        self._has_inherited = False
        self._pictures = pictures
        self._work = work
        self._places = places
        self._endings = endings
        self._clock = clock
        self.live = Live(clock)
        self._running: dict[Attempt, tuple[JobRecord, asyncio.Task[None], Fate]] = {}
        self._closing: set[Attempt] = set()
        """Attempts whose work is over: what is left to do is short, and has to be done to its end."""
        self._bell = Bell()
        self._renew_at = 0.0
        self._takes_jobs = True

    @property
    def under_way(self) -> int:
        return len(self._running)

    def take_no_more(self) -> None:
        """Those under way go on."""
        self._takes_jobs = False

    def wake(self) -> None:
        """There may be something to do."""
        self._bell.ring()

    async def run(self) -> NoReturn:
        """Until cancelled; then its jobs are free for others at once. Any exception is a defect."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                while True:
                    self._bell.still()
                    try:
                        await unbroken(self._round())
                    except DatabaseError as error:
                        log.debug("jobs: %s", error)  # the database has said so itself
                    await self._bell.wait(ROUND_SECONDS)
        finally:
            await self._let_go()

    async def _let_go(self) -> None:
        try:
            await self._queue.abandon(self._queue.owner)
        except DatabaseError as error:
            log.warning("jobs under way wait until their leases expire: %s", error)

    # --- rounds -------------------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        now = self._clock()
        if not self._has_inherited:
            await self._inherit()
        await self._look_after(now)
        await self._expire(now)
        if not self._takes_jobs:
            return
        if free := self._places.jobs - sum(self._held(batches=False).values()):
            await self._take(await self._queue.waiting(now), self._held(batches=False), free, now)
        if free := self._places.batch_lines - sum(self._held(batches=True).values()):
            lanes = await self._queue.waiting_batches(now)
            await self._take(dict.fromkeys(lanes, free), self._held(batches=True), free, now)

    async def _inherit(self) -> None:
        """What the gateway left that was here before, without waiting for its leases."""
        if self._owner.dead is not None:
            count = await self._queue.abandon(self._owner.dead)
            if count:
                log.info("%d jobs that were under way when the last gateway ended run again", count)
        self._owner.introduce()
        self._has_inherited = True

    async def _look_after(self, now: float) -> None:
        if self._running and now >= self._renew_at:
            await self._queue.renew(now)
            self._renew_at = now + RENEW_SECONDS
        mine = await self._queue.mine()
        given_up, strays = self._running.keys() - self._closing - mine, mine - self._running.keys()
        for attempt in given_up:
            is_over = await self._jobs.is_over(attempt.job)
            if attempt in self._running.keys() - self._closing:  # it may have come to its end meanwhile
                _, task, fate = self._running[attempt]
                fate.job_is_over = is_over
                task.cancel()
        for stray in strays:  # taken by a commit of which nobody was told that it had worked
            await self._queue.put_back(stray, now)
        news = self.live.news()
        if news:
            try:
                await self._queue.advance(news, now)
            except DatabaseError:
                self.live.told_again(news)
                raise

    async def _expire(self, now: float) -> None:
        for record in await self._queue.overdue(now, OVERDUE_AT_ONCE):
            ending = self._endings.make(record, JobStatus.EXPIRED, error=self._endings.expired)
            if await self._jobs.finish(record.id, ending, record.attempt):
                await self._drop_inputs(record)

    def _held(self, *, batches: bool) -> Counter[str]:
        """Tenant → places that it has."""
        running = (record for record, _, _ in self._running.values())
        return Counter(record.tenant for record in running if (record.batch_id is not None) is batches)

    async def _take(self, waiting: Mapping[Lane, int], held: Mapping[str, int], free: int, now: float) -> None:
        for lane, count in allot(waiting, held, free).items():
            for record in await self._queue.take(lane, count, now):
                self._start(record)

    def _start(self, record: JobRecord) -> None:
        attempt = Attempt(record.id, record.attempt)
        self.live.begin(attempt, record.pictures)
        fate = Fate()
        task = self._tasks.create_task(self._attempt(attempt, record, fate), name=record.id)
        self._running[attempt] = record, task, fate
        task.add_done_callback(lambda _: self._ended(attempt))

    def _ended(self, attempt: Attempt) -> None:
        self._running.pop(attempt, None)
        self._closing.discard(attempt)
        self.live.end(attempt)
        self.wake()  # for its place

    # --- one attempt --------------------------------------------------------------------------------------------------

    async def _attempt(self, attempt: Attempt, record: JobRecord, fate: Fate) -> None:
        try:
            try:
                made = await self._work(record, partial(self.live.hear, attempt), fate)
            finally:
                self._closing.add(attempt)
        except Postponed as delay:
            now = self._clock()
            predicted = None if delay.predicted_seconds is None else now + delay.predicted_seconds
            log.info("%s waits: %s", record.id, delay)
            await _insist(partial(self._queue.put_back, attempt, now + delay.seconds, predicted))
        except Failure as failure:
            await self._end(attempt, record, self._endings.make(record, failure.status, error=failure.error))
        else:
            await self._deliver(attempt, record, made)

    async def _deliver(self, attempt: Attempt, record: JobRecord, made: Made) -> None:
        assert record.token is not None  # noqa: S101 # every attempt has one
        names = await _insist(partial(self._pictures.put_outputs, record.token, made.pictures, made.extension))
        outputs = ",".join(names)
        ending = self._endings.make(
            record, JobStatus.COMPLETED, answer=made.answer, outputs=outputs, nbytes=made.nbytes
        )
        if not await self._end(attempt, record, ending):
            await _insist(partial(self._pictures.drop_outputs, names))

    async def _end(self, attempt: Attempt, record: JobRecord, ending: Ending) -> bool:
        """False if the job is no longer this attempt's."""
        counts = await _insist(partial(self._jobs.finish, record.id, ending, attempt.number))
        if counts:
            log.info("%s %s", record.id, ending.status)
            await self._drop_inputs(record)
        else:
            log.info("%s: what attempt %d made is dropped: the job went on without it", record.id, attempt.number)
        return counts

    async def _drop_inputs(self, record: JobRecord) -> None:
        await self._pictures.drop_inputs(record.id, filter(None, record.inputs.split(",")))


async def _insist(action: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Until it works: what it writes down must not be lost while the gateway lives."""
    while True:
        try:
            return await unbroken(action())
        except (DatabaseError, StoreError) as error:
            log.log(level_of(error), "jobs: %s; it is tried again", error)
        await asyncio.sleep(RETRY_SECONDS)

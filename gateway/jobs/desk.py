"""Where the API posts jobs and asks after them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NoReturn

from gateway.database.batches import Batches, BatchRecord
from gateway.database.errors import DatabaseError, level_of
from gateway.database.jobs import JobRecord, Jobs, JobStatus, Page
from gateway.database.unbroken import unbroken
from gateway.jobs.batch_runner import BatchRunner
from gateway.jobs.endings import Endings
from gateway.jobs.runner import Runner
from gateway.jobs.webhooks import Webhooks
from gateway.storage.job_pictures import JobPictures
from gateway.storage.objects import StoreError
from gateway.storage.space import StoreFull

KEEP_SECONDS = 30.0
"""Between two looks for what need not be kept any longer."""
ORPHANS_EVERY = 120
"""Such looks, to one for pictures of no job."""
AT_ONCE = 200

log = logging.getLogger(__name__)


class JobDesk:
    """Methods raise ``DatabaseError`` or ``StoreError``."""

    def __init__(
        self,
        jobs: Jobs,
        pictures: JobPictures,
        runner: Runner,
        endings: Endings,
        batches: Batches,
        batch_runner: BatchRunner,
        webhooks: Webhooks | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._jobs = jobs
        self._pictures = pictures
        self._runner = runner
        self._endings = endings
        self.batches = batches
        self._batch_runner = batch_runner
        self.webhooks = webhooks
        self._clock = clock

    async def run(self) -> None:
        """Until cancelled. Any exception is a defect."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._runner.run(), name="job runner")
            tasks.create_task(self._batch_runner.run(), name="batch runner")
            tasks.create_task(self._keep(), name="job keeper")
            if self.webhooks is not None:
                tasks.create_task(self.webhooks.run(), name="webhooks")

    def jobs_under_way(self) -> int:
        """That this gateway has in work."""
        return self._runner.under_way

    def take_no_more(self) -> None:
        """Jobs under way go on; those that wait are other gateways' from now on."""
        self._runner.take_no_more()

    async def accept(self, record: JobRecord, uploads: Mapping[str, bytes]) -> None:
        """From its return on, whatever happens, the job is done or says why not. Raises ``StoreFull``, too."""
        try:  # before the next await: others count on what is left
            self._pictures.promise(record.id, record.tenant, record.nbytes)
        except StoreFull:
            await self._pictures.recount(self._jobs.held_bytes)  # jobs may have been deleted
            self._pictures.promise(record.id, record.tenant, record.nbytes)
        try:
            await self._put_inputs(record.id, uploads)
            # Where this fails, nobody knows whether the job is kept; if not, the sweep finds pictures of no job.
            await self._jobs.add([replace(record, inputs=",".join(uploads))])
        except BaseException:
            self._pictures.withdraw(record.id)
            raise
        self._pictures.keep(record.id)
        self._runner.wake()

    async def _put_inputs(self, job_id: str, uploads: Mapping[str, bytes]) -> None:
        """All, or none and an error."""
        try:
            await self._pictures.put_inputs(job_id, uploads)
        except BaseException:
            await self._pictures.drop_inputs(job_id, uploads)
            raise

    async def find(self, tenant: str, job_id: str) -> JobRecord | None:
        record = await self._jobs.get(tenant, job_id)
        return None if record is None else self._runner.live.latest(record)

    async def place(self, record: JobRecord) -> int | None:
        """Among its tenant's jobs that wait, from 1; None for one that does not."""
        return await self._jobs.place(record) if record.status is JobStatus.QUEUED else None

    async def page(self, tenant: str, *, limit: int, after: JobRecord | None, oldest_first: bool) -> Page:
        page = await self._jobs.page(tenant, limit=limit, after=after, oldest_first=oldest_first)
        return replace(page, records=[self._runner.live.latest(record) for record in page.records])

    async def cancel(self, record: JobRecord) -> bool:
        """False if it has ended meanwhile. Whichever gateway runs it stops within a second or two."""
        ending = self._endings.make(record, JobStatus.CANCELLED)
        if not await self._jobs.finish(record.id, ending):
            return False
        self._runner.wake()
        await self._pictures.drop_inputs(record.id, _names(record.inputs))
        return True

    async def delete(self, record: JobRecord) -> None:
        """An ended job with all that belongs to it."""
        await self._jobs.delete([record.id])
        await self._drop(record)

    async def accept_batch(self, record: BatchRecord) -> None:
        """From its return on, whatever happens, it comes to an end."""
        await self.batches.add(record)
        self._batch_runner.wake()

    async def cancel_batch(self, record: BatchRecord) -> bool:
        """False if it has ended, or is being cancelled already."""
        is_changed = await self.batches.cancel(record.id, self._clock())
        self._batch_runner.wake()
        return is_changed

    async def outputs(self, record: JobRecord) -> list[bytes]:
        """The pictures of a completed job."""
        found = [await self._pictures.output(name) for name in _names(record.outputs)]
        if None in found:
            raise StoreError(f"pictures of {record.id} are missing")
        return [picture for picture in found if picture is not None]

    async def _keep(self) -> NoReturn:
        rounds = 0
        while True:
            try:
                await unbroken(self.sweep(orphans=rounds % ORPHANS_EVERY == 0))
                rounds += 1
            except (DatabaseError, StoreError) as error:
                log.log(level_of(error), "jobs: %s", error)
            await asyncio.sleep(KEEP_SECONDS)

    async def sweep(self, *, orphans: bool = False) -> None:
        """Delete jobs that have been kept long enough; with ``orphans``, pictures of no job as well."""
        while over := await self._jobs.over(self._clock(), AT_ONCE):
            await self._jobs.delete([record.id for record in over])
            for record in over:
                await self._drop(record)
        await self._batch_runner.sweep()
        await self._jobs.wipe()
        await self._pictures.recount(self._jobs.held_bytes)
        if orphans:
            await self._pictures.sweep(lambda ids, tokens: self._jobs.known(unfinished=ids, tokens=tokens))

    async def _drop(self, record: JobRecord) -> None:
        await self._pictures.drop_inputs(record.id, _names(record.inputs))
        await self._pictures.drop_outputs(_names(record.outputs))


def _names(text: str) -> list[str]:
    return text.split(",") if text else []

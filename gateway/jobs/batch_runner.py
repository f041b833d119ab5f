"""What is done to batches as a whole: their files are read and checked, and their output is written. One per gateway.

Their lines are run by the runner of jobs. A step that a gateway's death interrupts is begun again by whoever finds its
lease expired: lines are inserted anew, output files are written again under the same ids.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

import msgspec

from gateway.database.batches import Batches, BatchRecord, BatchStatus
from gateway.database.errors import DatabaseError, level_of
from gateway.database.jobs import JobRecord, Jobs, JobStatus
from gateway.jobs.batch_lines import FileError, LineReader, Place, TooMuch
from gateway.jobs.bell import Bell
from gateway.jobs.owner import Owner
from gateway.storage.files import FileRecord, Files
from gateway.storage.job_pictures import JobPictures
from gateway.storage.objects import StoreError

ROUND_SECONDS = 1.0
RENEW_SECONDS = 10.0
LINES_AT_ONCE = 500
DEFAULT_MODEL = "default"
"""Of lines that name none."""

log = logging.getLogger(__name__)


class Outcome(Protocol):
    """How lines of the output read."""

    lost: bytes
    """The error of a line whose pictures are gone, as JSON."""

    def nbytes(self, line: JobRecord) -> int: ...

    def render(self, line: JobRecord, pictures: Sequence[bytes]) -> bytes:
        """Of just so many bytes, the line feed included."""


class _Lost(Exception):
    """The batch is no longer this attempt's: it was cancelled, or another gateway took it."""


@dataclass(frozen=True, slots=True)
class BatchRules:
    keep_seconds: float
    """How long ended batches can be asked for."""
    output_seconds: float
    """How long files of the output are kept where the batch does not say."""


class BatchRunner:
    def __init__(
        self,
        batches: Batches,
        jobs: Jobs,
        files: Files,
        pictures: JobPictures,
        outcome: Outcome,
        is_known: Callable[[str | None], bool],
        rules: BatchRules,
        wake_jobs: Callable[[], None],
        owner: Owner,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``is_known``: whether a line's model is served, or was a while ago; of None, the default."""
        self._batches = batches
        self._jobs = jobs
        self._files = files
        self._pictures = pictures
        self._outcome = outcome
        self._is_known = is_known
        self._rules = rules
        self._wake_jobs = wake_jobs
        self._owner = owner
        self._clock = clock
        self._bell = Bell()
        self._has_inherited = False

    def wake(self) -> None:
        self._bell.ring()

    async def run(self) -> NoReturn:
        """Until cancelled; then its batches are free for others at once. Any exception is a defect."""
        try:
            while True:
                self._bell.still()
                try:
                    while await self.step():
                        pass
                except (DatabaseError, StoreError) as error:
                    log.log(level_of(error), "batches: %s; it is tried again", error)
                await self._bell.wait(ROUND_SECONDS)
        finally:
            try:
                await self._batches.abandon(self._owner.name)
            except DatabaseError as error:
                log.warning("batches wait until their leases expire: %s", error)

    async def step(self) -> bool:
        """Do what one batch needs. False if none needs anything. Raises ``DatabaseError`` or ``StoreError``."""
        if not self._has_inherited:
            if self._owner.dead is not None:
                await self._batches.abandon(self._owner.dead)
            self._has_inherited = True
        record = await self._batches.take(self._clock())
        if record is None:
            return False
        failure: Exception | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                renewing = tasks.create_task(self._renew(record), name=f"lease of {record.id}")
                try:
                    await self._advance(record)
                finally:
                    renewing.cancel()
        except* _Lost:
            log.info("%s goes on elsewhere, or was cancelled", record.id)
        except* (DatabaseError, StoreError) as group:
            failure = group.exceptions[0]  # raised below: Python 3.11.2 and older wrap what is raised here
        if failure is not None:
            await self._batches.change(record, owner=None)
            raise failure
        return True

    async def _renew(self, record: BatchRecord) -> NoReturn:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                if not await self._batches.renew(record, self._clock()):
                    raise _Lost
            except DatabaseError as error:
                log.log(level_of(error), "%s: %s", record.id, error)

    async def _advance(self, record: BatchRecord) -> None:
        match record.status:
            case BatchStatus.VALIDATING:
                await self._validate(record)
            case BatchStatus.IN_PROGRESS:
                now = self._clock()
                await self._batches.end_lines(record, JobStatus.EXPIRED, now)
                await self._change(record, status=BatchStatus.FINALIZING, finalizing_at=now)
                await self._finalize(record)
            case BatchStatus.FINALIZING:
                await self._finalize(record)
            case BatchStatus.CANCELLING:
                await self._batches.end_lines(record, JobStatus.CANCELLED, self._clock())
                self._wake_jobs()
                await self._finalize(record, BatchStatus.CANCELLED)
            case _:
                raise AssertionError(f"a batch that is over was taken: {record}")

    async def _change(self, record: BatchRecord, **values: object) -> None:
        if not await self._batches.change(record, **values):
            raise _Lost

    # --- the input ----------------------------------------------------------------------------------------------------

    async def _validate(self, record: BatchRecord) -> None:
        await self._batches.delete_lines(record)  # of an attempt that was interrupted
        reader = LineReader(record.endpoint)
        try:
            await self._insert_lines(record, reader)
        except TooMuch as failure:
            reader.errors.append(failure.error)
        if reader.errors:
            await self._batches.delete_lines(record)
            errors = msgspec.json.encode({"object": "list", "data": reader.errors})
            now = self._clock()
            await self._change(record, status=BatchStatus.FAILED, ended_at=now, errors=errors, owner=None)
            log.info("%s failed: its file has errors", record.id)
            return
        now, total = self._clock(), reader.count
        await self._change(record, status=BatchStatus.IN_PROGRESS, in_progress_at=now, total=total, owner=None)
        log.info("%s has %d requests", record.id, reader.count)
        self._wake_jobs()

    async def _insert_lines(self, record: BatchRecord, reader: LineReader) -> None:
        file = await self._files.find(record.tenant, record.input_file_id)
        download = None if file is None else await self._files.open(file)
        if download is None:
            raise TooMuch(FileError("file_not_found", f"No such File object: {record.input_file_id}."))
        places: list[Place] = []
        async for chunk in download.chunks:
            places += reader.feed(chunk)
            if len(places) >= LINES_AT_ONCE and not reader.errors:
                await self._add(record, places)
                places = []
        places += reader.end()
        if not reader.errors:
            await self._add(record, places)

    async def _add(self, record: BatchRecord, places: Sequence[Place]) -> None:
        now = self._clock()
        for start in range(0, len(places), LINES_AT_ONCE):
            lines = [
                JobRecord(
                    id=f"job_{secrets.token_hex(16)}",
                    tenant=record.tenant,
                    endpoint=record.endpoint,
                    model=(place.model or DEFAULT_MODEL) if self._is_known(place.model) else "",
                    request=record.request,
                    created_at=now,
                    deadline_at=record.expires_at,
                    batch_id=record.id,
                    line=place.number,
                    custom_id=place.custom_id,
                    begins=place.begins,
                    length=place.length,
                )
                for place in places[start : start + LINES_AT_ONCE]
            ]
            await self._jobs.add(lines)  # nobody takes them before the whole file is known to be good

    # --- the output ---------------------------------------------------------------------------------------------------

    async def _finalize(self, record: BatchRecord, status: BatchStatus = BatchStatus.COMPLETED) -> None:
        good, bad, bytes_of = 0, 0, {True: 0, False: 0}
        async for line in self._lines(record):
            is_good = line.status is JobStatus.COMPLETED
            good, bad = good + is_good, bad + (not is_good)
            bytes_of[is_good] += self._outcome.nbytes(line)
            if line.status is JobStatus.EXPIRED and status is BatchStatus.COMPLETED:
                status = BatchStatus.EXPIRED
        output = await self._write(record, "output", bytes_of[True], good=True) if good else None
        errors = await self._write(record, "errors", bytes_of[False], good=False) if bad else None
        await self._change(
            record,
            status=status,
            ended_at=self._clock(),
            total=good + bad,  # not known before of one that was cancelled while its file was read
            completed=good,
            failed=bad,
            output_file_id=output.id if output else None,
            error_file_id=errors.id if errors else None,
            owner=None,
        )
        log.info("%s %s: %d requests completed, %d failed", record.id, status, good, bad)
        await self._clear(record)

    async def _clear(self, record: BatchRecord) -> None:
        async for line in self._lines(record):
            await self._pictures.drop_outputs(filter(None, line.outputs.split(",")))
        await self._batches.delete_lines(record)

    async def _lines(self, record: BatchRecord) -> AsyncIterator[JobRecord]:
        after = 0
        while lines := await self._batches.lines(record, after, LINES_AT_ONCE):
            for line in lines:
                yield line
            after = lines[-1].line or 0

    async def _write(self, record: BatchRecord, kind: str, nbytes: int, *, good: bool) -> FileRecord:
        """Written again by another attempt it has the same id, and replaces what this one left."""
        return await self._files.create(
            self._rendered(record, good=good),
            tenant=record.tenant,
            filename=f"{record.id}_{kind}.jsonl",
            purpose="batch_output",
            nbytes=nbytes,
            content_type="application/jsonl",
            lifetime_seconds=record.output_seconds or self._rules.output_seconds,
            file_id=f"file-{hashlib.sha256(f'{record.id}/{kind}'.encode()).hexdigest()[:32]}",
            is_promised=True,
        )

    async def _rendered(self, record: BatchRecord, *, good: bool) -> AsyncIterator[bytes]:
        async for line in self._lines(record):
            if (line.status is JobStatus.COMPLETED) is not good:
                continue
            names = line.outputs.split(",") if line.outputs else []
            pictures = [await self._pictures.output(name) for name in names]
            if None in pictures:
                await self._batches.lose_line(line.id, self._outcome.lost)  # counted as failed the next time
                raise StoreError(f"pictures of line {line.line} of {record.id} are missing")
            yield self._outcome.render(line, [picture for picture in pictures if picture is not None])

    async def sweep(self) -> None:
        """Forget batches that ended long ago, and lines of which a gateway's death left something."""
        for record in await self._batches.with_leavings():  # first: lines of no batch would never be found again
            await self._clear(record)
        await self._batches.delete_old(self._clock() - self._rules.keep_seconds)

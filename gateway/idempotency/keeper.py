"""What outlives a run: the claim that keeps other gateways from doing the same, and the answer.

Without the database, requests are answered as if their key were a new one; without the file store, answers are given
and not kept. Both are said to the client, and in the log.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from gateway.database.answers import Answers, Kept, UnderWay
from gateway.database.errors import DatabaseError, level_of
from gateway.idempotency.clock import Clock, SystemClock
from gateway.idempotency.run import Answer, Head, Origin, OtherRequest, Run
from gateway.storage.objects import Objects, StoreError

LEASE_SECONDS = 20.0
"""How long a claim stands that nobody renews: so long a request waits for a gateway that was killed. Clocks of gateways
may differ by a good part of that."""
RENEW_SECONDS = 5.0

POLL_SECONDS = 1.0
"""Between two looks at what another gateway is making."""

STORE_SECONDS = 10.0
"""How long an answer waits until it is kept."""

INLINE_BYTES = 64 << 10
"""Bodies up to this size lie in the database: whatever holds no picture."""

PREFIX = "answers"
ORPHAN_SECONDS = 3600.0
"""Objects and claims that nothing was heard of for so long are those of a process that was killed."""

FINAL_ERRORS = (None, "moderation_blocked", "unsupported_value")
"""The same request would always come to these; any other error may be over the next time."""

PASSING_HEADERS = (b"content-length", b"x-ratelimit-")
"""Beginnings of headers that belong to one response and not to the answer."""

log = logging.getLogger(__name__)


class Keeper:
    def __init__(
        self, answers: Answers, objects: Objects, *, max_age_seconds: float, max_bytes: int, clock: Clock | None = None
    ) -> None:
        self._answers = answers
        self._objects = objects
        self._max_age_seconds = max_age_seconds
        self._max_bytes = max_bytes
        self._clock = clock or SystemClock()
        self._claims: set[bytes] = set()
        self._renewing: asyncio.Task[None] | None = None
        self._orphans_at = 0.0

    @asynccontextmanager
    async def claimed(self, key: bytes, run: Run) -> AsyncIterator[bool]:
        """True: the answer has to be made inside the block, and is kept on leaving it. False: the run has it.

        Raises ``OtherRequest``, or ``StoreError`` if the answer is there and cannot be read.
        """
        try:
            kept = await self._claim(key, run)
        except DatabaseError as error:
            log.debug("%s: nobody knows whether its Idempotency-Key was used before: %s", run.request_id, error)
            run.origin = Origin.UNAVAILABLE
            yield True
            return
        if kept is not None:
            run.replay(kept)
            yield False
            return
        self._hold(key)
        is_kept = False
        try:
            yield True
            is_kept = await self._keep(key, run)
        finally:
            self._let_go(key)
            if not is_kept:
                with suppress(DatabaseError):  # which is in the log; the lease ends by itself
                    await self._answers.release(key)

    async def waited_for_elsewhere(self, key: bytes) -> float:
        """Unix time at which another gateway last asked, 0 if none did."""
        try:
            return await self._answers.waited_for(key)
        except DatabaseError:
            return 0.0

    async def sweep(self) -> None:
        """Delete what has expired or is too much, and what killed processes left."""
        now = self._clock.now()
        try:
            gone, early = await self._answers.sweep(now, now - ORPHAN_SECONDS, self._max_bytes)
            if early:
                log.warning(
                    "%d answers are forgotten before their time: IDEMPOTENCY_MAX_BYTES (%d) is full",
                    early,
                    self._max_bytes,
                )
            if now >= self._orphans_at:
                gone += await self._orphans(now)
                self._orphans_at = now + ORPHAN_SECONDS
            await self._objects.discard(gone)
        except DatabaseError:
            return  # which is in the log
        except StoreError as error:
            log.warning("kept answers: %s", error)

    async def _orphans(self, now: float) -> list[str]:
        lying = await self._objects.list(PREFIX)  # before the rows are read, which are written later
        named = await self._answers.objects()
        return [each.key for each in lying if each.key not in named and each.modified < now - ORPHAN_SECONDS]

    # --- claims -------------------------------------------------------------------------------------------------------

    async def _claim(self, key: bytes, run: Run) -> Answer | None:
        """None once the claim is ours. Waits for other gateways. Raises ``OtherRequest``, ``StoreError``."""
        while True:
            now = self._clock.now()
            found = await self._answers.claim(key, run.digest, run.request_id, now, now + LEASE_SECONDS)
            if found is None:
                return None
            if found.digest != run.digest:
                raise OtherRequest
            if isinstance(found, UnderWay):
                await self._clock.sleep(POLL_SECONDS)
                continue
            body = found.body if found.object is None else await self._objects.get(found.object)
            if body is not None:
                head = Head(
                    found.status, [(name.encode("latin-1"), value.encode("latin-1")) for name, value in found.headers]
                )
                return Answer(head, body, found.request_id, found.error_code)
            log.error(
                "%s: the answer to its Idempotency-Key is not in the file store, and is made again; gateways on one "
                "database need one DISAGFUSION_FILE_STORE",
                run.request_id,
            )
            await self._answers.forget(key, found)

    def _hold(self, key: bytes) -> None:
        self._claims.add(key)
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew(), name="renew claims")

    def _let_go(self, key: bytes) -> None:
        self._claims.discard(key)
        if not self._claims and self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(RENEW_SECONDS)
            with suppress(DatabaseError):  # which is in the log
                await self._answers.renew(tuple(self._claims), self._clock.now() + LEASE_SECONDS)

    # --- answers ------------------------------------------------------------------------------------------------------

    async def _keep(self, key: bytes, run: Run) -> bool:
        answer = run.complete()
        if answer is None or answer.error_code not in FINAL_ERRORS:
            return False
        try:
            async with asyncio.timeout(STORE_SECONDS):
                is_kept = await self._store(key, run, answer)
        except (StoreError, DatabaseError, TimeoutError) as error:
            why = str(error) or f"that takes more than {STORE_SECONDS:g} s"
            # Whoever waits leaves a line that says so (``gateway.api.context``).
            level = level_of(error, logging.ERROR) if run.audience else logging.ERROR
            log.log(level, "%s: the answer to its Idempotency-Key is not kept: %s", run.request_id, why)
            is_kept = False
        if not is_kept:
            run.origin = Origin.NOT_KEPT
        return is_kept

    async def _store(self, key: bytes, run: Run, answer: Answer) -> bool:
        name = f"{PREFIX}/{secrets.token_hex(16)}" if len(answer.body) > INLINE_BYTES else None
        if name is not None:
            await self._objects.put(name, answer.body)  # first: a row must not name what is not there
        kept = Kept(
            run.digest,
            run.request_id,
            answer.head.status,
            [(header.decode("latin-1"), value.decode("latin-1")) for header, value in _lasting(answer.head)],
            answer.error_code,
            answer.body if name is None else None,
            name,
            len(answer.body),
        )
        lasts = min(self._max_age_seconds, run.lasts_seconds or self._max_age_seconds)
        if await self._answers.keep(key, kept, self._clock.now() + lasts):
            return True
        log.warning("%s: its lease ran out, and another gateway answers its Idempotency-Key", run.request_id)
        if name is not None:
            await self._objects.discard([name])
        return False


def _lasting(head: Head) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in head.headers if not name.lower().startswith(PASSING_HEADERS)]

"""Callers' files: each belongs to one tenant, for whom alone it exists.

A file is two objects, its bytes and its record. The record is written last and deleted first: a file without one never
was. All records are in memory as well; they lie in a folder of their tenant's, so that one look tells what other
gateways have stored or deleted since.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import msgspec

from gateway.storage.objects import Download, Objects
from gateway.storage.space import Space, StoreFull

CONTENT, RECORDS = "files", "records"

RECORD_BYTES = 4096
"""What a record counts for, so that empty files fill the store, too."""

MAX_FILES = 100_000
"""Of all tenants: their records are held in memory."""

ORPHAN_SECONDS = 3600.0
"""Bytes without a record for that long belong to an upload that never ended."""


_ID = re.compile(r"file-[0-9a-f]{32}", re.ASCII)

log = logging.getLogger(__name__)


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    tenant: str
    filename: str
    purpose: str
    nbytes: int
    content_type: str
    created_at: int
    """Unix time, as ``expires_at``."""
    expires_at: int | None = None
    stored_at: float = 0.0
    """The same as ``created_at``, more exactly: several gateways list in one order."""

    @property
    def order(self) -> tuple[float, str]:
        return self.stored_at or self.created_at, self.id


class Files:
    """Every method raises ``StoreError``."""

    def __init__(
        self,
        objects: Objects,
        space: Space,
        make_room: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``make_room`` is called when files have taken more of ``space``."""
        self._objects = objects
        self._space = space
        self._make_room = make_room
        self._clock = clock
        self._tenants: dict[str, dict[str, FileRecord]] = {}
        self._loose: set[str] = set()
        """Files whose records lie beside the tenants' folders, where earlier versions put them."""

    def __len__(self) -> int:
        return sum(map(len, self._tenants.values()))

    async def load(self) -> None:
        """Take up what an earlier process left."""
        records = {stored.key for stored in await self._objects.list(RECORDS)}
        contents = await self._objects.list(CONTENT)
        await self._read(records)
        known, stale = set(map(_id_of, records)), self._clock() - ORPHAN_SECONDS
        await self._objects.discard(
            stored.key for stored in contents if stored.key.rpartition("/")[2] not in known and stored.modified < stale
        )

    async def look(self, tenant: str) -> None:
        """What other gateways on the same store did with the tenant's files since is known on return."""
        before = set(self._tenants.get(tenant, ()))  # first: what is stored from now on may be in the list, or not
        there = {_id_of(stored.key): stored.key for stored in await self._objects.list(_folder(tenant))}
        await self._read(there[file_id] for file_id in there.keys() - before)
        for file_id in before - there.keys() - self._loose:
            if (record := self._tenants.get(tenant, {}).get(file_id)) is not None:
                self._forget(record)

    async def _read(self, keys: Iterable[str]) -> None:
        at_once = asyncio.Semaphore(16)

        async def read(key: str) -> FileRecord | None:
            async with at_once:
                raw = await self._objects.get(key)
            try:
                record = msgspec.json.decode(raw, type=FileRecord) if raw else None
            except msgspec.DecodeError as error:
                log.error("%s is passed over: %s", key, error)  # noqa: TRY400 # the place says it all
                return None
            if record is not None and key == _loose_key(record.id):
                self._loose.add(record.id)
            return record

        for record in filter(None, await asyncio.gather(*map(read, keys))):
            self._remember(record)

    async def create(
        self,
        data: bytes | AsyncIterator[bytes],
        *,
        tenant: str,
        filename: str,
        purpose: str,
        nbytes: int,
        content_type: str,
        lifetime_seconds: float | None,
        file_id: str | None = None,
        is_promised: bool = False,
    ) -> FileRecord:
        """Store a file; it expires after ``lifetime_seconds``. Raises ``StoreFull``, too.

        One of the same ``file_id`` is replaced. ``is_promised``: its room has been kept all along.
        """
        exactly = self._clock()
        now = int(exactly)
        record = FileRecord(
            id=file_id or f"file-{secrets.token_hex(16)}",
            tenant=tenant,
            filename=filename,
            purpose=purpose,
            nbytes=nbytes,
            content_type=content_type,
            created_at=now,
            expires_at=None if lifetime_seconds is None else now + int(lifetime_seconds),
            stored_at=exactly,
        )
        if not is_promised:
            self._space.check(tenant, _weight(record))
            if len(self) >= MAX_FILES:
                raise StoreFull(f"The store holds {MAX_FILES} files, as many as it may")
        if (earlier := self.get(tenant, record.id)) is not None:
            await self.delete(earlier)
        self._space.files[tenant] += _weight(record)  # before the first await: others count on what is left
        try:
            await self._make_room()
            await self._objects.put(_content_key(record.id), data)
            await self._objects.put(_record_key(record), msgspec.json.encode(record))
        except BaseException:
            self._space.files[tenant] -= _weight(record)
            await self._objects.discard([_record_key(record), _content_key(record.id)])
            raise
        self._space.files[tenant] -= _weight(record)
        self._remember(record)
        return record

    def get(self, tenant: str, file_id: str) -> FileRecord | None:
        """None for what is unknown, expired, or another tenant's."""
        record = self._tenants.get(tenant, {}).get(file_id)
        return None if record is None or self._is_over(record) else record

    async def find(self, tenant: str, file_id: str) -> FileRecord | None:
        """The same, also for a file that another gateway stored since this one started."""
        record = self.get(tenant, file_id)
        if record is None and _ID.fullmatch(file_id):
            raw = await self._objects.get(f"{_folder(tenant)}/{file_id}.json")
            read = msgspec.json.decode(raw, type=FileRecord) if raw else None
            if read is not None and read.tenant == tenant and not self._is_over(read):
                self._remember(read)
                record = read
        return record

    async def part(self, record: FileRecord, begins: int, length: int) -> bytes | None:
        """Some of the file's bytes; None when they are gone."""
        return await self._objects.part(_content_key(record.id), begins, length)

    def of(self, tenant: str) -> list[FileRecord]:
        """All of the tenant's files, oldest first."""
        kept = (record for record in self._tenants.get(tenant, {}).values() if not self._is_over(record))
        return sorted(kept, key=lambda record: record.order)

    async def open(self, record: FileRecord) -> Download | None:
        """The file's bytes; None when they are gone."""
        return await self._objects.open(_content_key(record.id))

    async def delete(self, record: FileRecord) -> None:
        await self._objects.delete(_loose_key(record.id) if record.id in self._loose else _record_key(record))
        self._loose.discard(record.id)
        self._forget(record)
        await self._objects.discard([_content_key(record.id)])

    async def sweep(self) -> None:
        """Delete what has expired."""
        over = [record for files in self._tenants.values() for record in files.values() if self._is_over(record)]
        for record in over:
            await self.delete(record)

    def _is_over(self, record: FileRecord) -> bool:
        return record.expires_at is not None and record.expires_at <= self._clock()

    def _remember(self, record: FileRecord) -> None:
        files = self._tenants.setdefault(record.tenant, {})
        if record.id not in files:
            files[record.id] = record
            self._space.files[record.tenant] += _weight(record)

    def _forget(self, record: FileRecord) -> None:
        files = self._tenants.get(record.tenant, {})
        if files.pop(record.id, None) is not None:
            self._space.files[record.tenant] -= _weight(record)
        if not files:
            self._tenants.pop(record.tenant, None)
            self._space.files += Counter()  # without tenants that have none


def _weight(record: FileRecord) -> int:
    return record.nbytes + RECORD_BYTES


def _content_key(file_id: str) -> str:
    return f"{CONTENT}/{file_id}"


def _record_key(record: FileRecord) -> str:
    return f"{_folder(record.tenant)}/{record.id}.json"


def _loose_key(file_id: str) -> str:
    return f"{RECORDS}/{file_id}.json"


def _folder(tenant: str) -> str:
    """Of its records. Names of tenants may be anything; those of folders may not."""
    return f"{RECORDS}/{hashlib.sha256(tenant.encode()).hexdigest()[:32]}"


def _id_of(record_key: str) -> str:
    return record_key.rpartition("/")[2].removesuffix(".json")

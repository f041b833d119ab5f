"""Where bytes are kept: one small seam over obstore, for a directory, an S3-compatible store, or memory.

Callers see keys, bytes and ``StoreError``; what is behind them is decided once, at start.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from obstore.exceptions import BaseError
from obstore.store import LocalStore, MemoryStore, from_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obstore.store import ObjectStore

CHUNK_BYTES = 1 << 20

CLIENT_OPTIONS = {
    "allow_http": True,  # the endpoint's own scheme says what is wanted
    "connect_timeout": timedelta(seconds=5),
    "timeout": timedelta(seconds=30),  # of one request; a large object is many
}
RETRIES = {"max_retries": 2, "retry_timeout": timedelta(seconds=20)}

log = logging.getLogger(__name__)


class StoreError(Exception):
    """The store cannot be reached, is full, or refuses. The text is for the log: it may name paths and hosts."""


@dataclass(frozen=True, slots=True)
class Stored:
    key: str
    nbytes: int
    modified: float
    """Unix time."""


@dataclass(frozen=True, slots=True)
class Download:
    nbytes: int
    chunks: AsyncIterator[bytes]
    """Raises ``StoreError``."""


class Objects:
    """Every method but ``discard`` raises ``StoreError``."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._undead: set[str] = set()

    async def put(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        """Store all of ``data`` or nothing."""
        with _translated("store", key):
            await self._store.put_async(key, data)

    async def get(self, key: str) -> bytes | None:
        """None when there is no such object."""
        with _translated("read", key):
            try:
                found = await self._store.get_async(key)
                return bytes(await found.bytes_async())
            except FileNotFoundError:
                return None

    async def open(self, key: str) -> Download | None:
        """For objects that are too large to hold at once."""
        with _translated("read", key):
            try:
                found = await self._store.get_async(key)
            except FileNotFoundError:
                return None

        async def chunks() -> AsyncIterator[bytes]:
            with _translated("read", key):
                async for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
                    yield bytes(chunk)

        return Download(found.meta["size"], chunks())

    async def part(self, key: str, start: int, length: int) -> bytes | None:
        """Some of its bytes; None when there is no such object."""
        with _translated("read", key):
            try:
                return bytes(await self._store.get_range_async(key, start=start, length=length))
            except FileNotFoundError:
                return None

    async def list(self, prefix: str) -> list[Stored]:
        with _translated("list", prefix):
            return [
                Stored(each["path"], each["size"], each["last_modified"].timestamp())
                async for batch in self._store.list(prefix)
                for each in batch
            ]

    async def delete(self, key: str) -> None:
        """Whether it is there or not."""
        with _translated("delete", key), suppress(FileNotFoundError):
            await self._store.delete_async(key)

    async def discard(self, keys: Iterable[str] = ()) -> None:
        """Delete ``keys``, and what could not be deleted before; what refuses waits for the next call."""
        self._undead.update(keys)
        for key in tuple(self._undead):
            try:
                await self.delete(key)
            except StoreError as error:
                log.warning("%s; it is tried again", error)
                return
            self._undead.discard(key)


def in_memory() -> Objects:
    return Objects(MemoryStore())


def open_store(url: str | None, folder: Path) -> Objects:
    """The store at ``url``, or ``folder`` without one. Raises ``StoreError``; a remote store is not asked yet."""
    with _translated("open", url or str(folder)):
        if url is None:
            store = LocalStore(folder, mkdir=True)
            for left in folder.rglob("*#*"):  # of uploads that a killed process did not finish
                left.unlink()
            return Objects(store)
        if url.startswith("file:"):
            return Objects(from_url(url, mkdir=True))
        if url.startswith("memory:"):
            return in_memory()
        return Objects(from_url(url, client_options=CLIENT_OPTIONS, retry_config=RETRIES))  # type: ignore[call-overload]


@contextmanager
def _translated(doing: str, what: str) -> Iterator[None]:
    """obstore's errors as ours."""
    try:
        yield
    except (BaseError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]  # obstore adds a page of debugging aids
        raise StoreError(f"cannot {doing} {what}: {reason}") from error

"""All keys as requests are checked against them: in memory, at most a second behind the database, and good without it
for ten minutes.

Requests never wait for the database, so neither its failure nor a flood of wrong keys is felt by those who call.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import NoReturn

from pydantic import SecretStr

from gateway.accounts import secrets
from gateway.accounts.caller import ANYBODY, Caller
from gateway.database.errors import DatabaseError
from gateway.database.keys import KeyRecord, StoredKeys

POLL_SECONDS = 0.5
"""Between two looks for changes, so that one is felt within a second."""

USED_SECONDS = 10.0
"""Between two writings of when keys were last used."""

TRUSTED_SECONDS = 600.0
"""How long keys are good that cannot be looked up again."""

CURRENT_SECONDS = 5.0
"""How long after the last look a key that nobody knows is called wrong; later it may be a new one."""

log = logging.getLogger(__name__)


class Refusal(Enum):
    MISSING = auto()
    WRONG = auto()
    REVOKED = auto()
    EXPIRED = auto()


class KeyRefused(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.name.lower())
        self.refusal = refusal


class KeysUnknown(Exception):
    """Nobody can tell now whether the key is good."""


@dataclass(frozen=True, slots=True)
class _Entry:
    digest: bytes
    caller: Caller
    expires: float | None = None
    revoked: bool = False
    stored: bool = True
    """In the database, not in the environment."""


_NOBODY = _Entry(bytes(32), ANYBODY, revoked=True)
"""Compared with where no key has the digest that was shown."""


class KeyRing:
    """Static keys, and those of the database if there is one. To be made open to all where ``anonymous``: it is until
    the first key exists, and never again, as keys are revoked but not deleted."""

    def __init__(
        self,
        static: Mapping[str, SecretStr],
        stored: StoredKeys | None = None,
        *,
        anonymous: bool = True,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``static``: tenant → key."""
        self._stored = stored
        self._anonymous = anonymous
        self._clock = clock
        self._monotonic = monotonic
        self._static: dict[bytes, _Entry] = {}
        for tenant, key in static.items():
            digest = secrets.digest_of(key.get_secret_value().encode())
            self._static.setdefault(digest, _Entry(digest, Caller(tenant, f"static:{tenant}"), stored=False))
        self._entries = dict(self._static)
        self._change: int | None = None
        """The database's count of changes that ``_entries`` are as of."""
        self._looked = float("-inf")
        self._used: dict[str, float] = {}

    @property
    def empty(self) -> bool:
        """Whether there is certainly no key."""
        return not self._entries and (self._stored is None or self._change is not None)

    @property
    def required(self) -> bool:
        """Whether callers must show a key."""
        return not (self._anonymous and self.empty)

    def has_others(self, tenant: str) -> bool:
        """Whether any tenant but this one has a key that is not revoked."""
        return any(entry.caller.tenant != tenant for entry in self._entries.values() if not entry.revoked)

    def check(self, shown: bytes) -> Caller:
        """Whose key ``shown`` is. Right, wrong, revoked and expired keys take one way: one digest, one comparison.

        Raises ``KeyRefused`` or ``KeysUnknown``.
        """
        if not self.required:
            return ANYBODY
        digest = secrets.digest_of(shown)
        # The search may take longer for one digest than for another; nobody can choose a digest to learn from that.
        entry = self._entries.get(digest, _NOBODY)
        if not secrets.same(entry.digest, digest):
            self._refuse_unknown(shown)
        if entry.revoked:
            raise KeyRefused(Refusal.REVOKED)
        now = self._clock()
        if entry.expires is not None and entry.expires <= now:
            raise KeyRefused(Refusal.EXPIRED)
        if entry.stored:
            if self._age() > TRUSTED_SECONDS:
                raise KeysUnknown
            self._used[entry.caller.key] = now
        return entry.caller

    def _refuse_unknown(self, shown: bytes) -> NoReturn:
        maybe_open = self._anonymous and not self._entries
        if self._stored is not None and self._age() > CURRENT_SECONDS and (shown or maybe_open):
            raise KeysUnknown
        raise KeyRefused(Refusal.WRONG if shown else Refusal.MISSING)

    def _age(self) -> float:
        """Seconds since the database last said what has changed."""
        return self._monotonic() - self._looked

    async def refresh(self) -> None:
        """Take up what has changed in the database. Raises ``DatabaseError``."""
        if self._stored is None:
            return
        looking = self._monotonic()
        found = await self._stored.changed_since(self._change)
        if found is not None:
            self._change, records = found
            self._entries = {record.digest: _entry(record) for record in records} | self._static
        self._looked = looking

    async def write_used(self) -> None:
        """Note in the database when keys were last used. Raises ``DatabaseError``, and then nothing is forgotten."""
        if self._stored is None or not self._used:
            return
        used, self._used = self._used, {}
        try:
            await self._stored.note_used(used)
        except BaseException:
            self._used = used | self._used
            raise

    async def run(self) -> NoReturn:
        """Follow the database for ever. While it fails, which it says itself, what is known stays."""
        wrote = self._monotonic()
        while True:
            try:
                await self.refresh()
                if self._monotonic() - wrote >= USED_SECONDS:
                    wrote = self._monotonic()
                    await self.write_used()
            except DatabaseError:
                log.debug("keys are %.0f s old", self._age())
            await asyncio.sleep(POLL_SECONDS)


def _entry(record: KeyRecord) -> _Entry:
    return _Entry(record.digest, record.caller, record.expires, record.revoked is not None)

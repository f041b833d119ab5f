"""Finished pictures behind urls, for clients that want a url: until they expire, or the oldest make room."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable

from gateway.storage.objects import Objects
from gateway.storage.space import Space

PREFIX = "pictures"

_NAME = re.compile(r"img_([0-9a-f]{8})[0-9a-f]{32}\.(png|jpeg|webp)", re.ASCII)
"""The time of expiry is part of the name, so a restart forgets nothing; 128 random bits make it unguessable."""


class Pictures:
    """Names and sizes are remembered, oldest first; the bytes lie in the store."""

    def __init__(
        self,
        objects: Objects,
        space: Space,
        *,
        max_bytes: int,
        max_age_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._objects = objects
        self._space = space
        self._max_bytes = max_bytes
        self._max_age = max_age_seconds
        self._clock = clock
        self._sizes: dict[str, int] = {}

    async def load(self) -> None:
        """Take up what an earlier process left. Raises ``StoreError``."""
        for stored in sorted(await self._objects.list(PREFIX), key=lambda stored: stored.key):
            name = stored.key.rpartition("/")[2]
            if _NAME.fullmatch(name) and name not in self._sizes:
                self._sizes[name] = stored.nbytes
                self._space.pictures += stored.nbytes
        await self.sweep()

    async def put(self, image: bytes, extension: str) -> str:
        """Store ``image`` and return its name, which ends in ``.extension``. Raises ``StoreError``."""
        name = f"img_{int(self._clock() + self._max_age):08x}{secrets.token_hex(16)}.{extension}"
        self._space.pictures += len(image)
        doomed = self._oldest_in_the_way()
        self._sizes[name] = len(image)
        try:
            await self._objects.put(_key(name), image)
        except BaseException:
            self._forget(name)
            raise
        await self._objects.discard(map(_key, doomed))
        return name

    async def get(self, name: str) -> bytes | None:
        """The picture of that name, or None when it has expired or never was. Raises ``StoreError``."""
        if self._expires(name) <= self._clock():
            return None
        return await self._objects.get(_key(name))

    async def sweep(self) -> None:
        """Delete what has expired, and what is in the way of files."""
        now = self._clock()
        doomed = [name for name in self._sizes if self._expires(name) <= now]
        for name in doomed:
            self._forget(name)
        await self._objects.discard(map(_key, doomed + self._oldest_in_the_way()))

    def _oldest_in_the_way(self) -> list[str]:
        """Forget them and return their names."""
        doomed = []
        while self._sizes and (self._space.pictures > self._max_bytes or self._space.excess > 0):
            name = next(iter(self._sizes))
            self._forget(name)
            doomed.append(name)
        return doomed

    def _forget(self, name: str) -> None:
        self._space.pictures -= self._sizes.pop(name, 0)

    @staticmethod
    def _expires(name: str) -> float:
        """Unix time; 0 for what is no name of a picture."""
        match = _NAME.fullmatch(name)
        return int(match[1], 16) if match else 0.0


def _key(name: str) -> str:
    return f"{PREFIX}/{name}"

"""Encodings that are being made for some request: equal ones wait for them instead of making them again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from wire.types import RequestId

MOST_SECONDS = 5.0
"""That a request waits, of which the scheduler does not know yet; then it is on its own."""


@dataclass(frozen=True, slots=True)
class _Maker:
    request: RequestId
    exact: bool
    outcome: asyncio.Future[bool]
    """Whether it was made."""


class UnderWay:
    """By the keys of ``gateway.service.embeddings``, on one event loop."""

    def __init__(self) -> None:
        self._makers: dict[str, _Maker] = {}

    async def wait(self, keys: Iterable[str], *, exact: bool) -> None:
        """Until each of them was made or nobody makes it, but no longer than ``MOST_SECONDS``.

        Of several that wait for one that came to nothing, the first returns and makes it, and the others wait for that.
        Who must be ``exact`` waits for nothing else.
        """
        clock = asyncio.get_running_loop().time
        limit = clock() + MOST_SECONDS
        for key in keys:
            while (maker := self._makers.get(key)) is not None and maker.exact >= exact:
                done, _ = await asyncio.wait({maker.outcome}, timeout=limit - clock())
                if not done:
                    return
                if maker.outcome.result():
                    break  # whether it is kept or not: those who wait must not make it one after the other

    def begin(self, keys: Iterable[str], request: RequestId, *, exact: bool) -> None:
        """``request`` makes these, unless another does already."""
        loop = asyncio.get_running_loop()
        for key in keys:
            self._makers.setdefault(key, _Maker(request, exact, loop.create_future()))

    def made(self, key: str, request: RequestId) -> None:
        self._settle(key, request, is_made=True)

    def over(self, keys: Iterable[str], request: RequestId) -> None:
        """The request makes nothing any more."""
        for key in keys:
            self._settle(key, request, is_made=False)

    def _settle(self, key: str, request: RequestId, *, is_made: bool) -> None:
        maker = self._makers.get(key)
        if maker is not None and maker.request == request:
            del self._makers[key]
            maker.outcome.set_result(is_made)

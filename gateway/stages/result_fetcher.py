"""Fetches finished pictures from the stage servers that hold them: ``wire.transfer``'s consumer on the event loop."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from gateway.stages.sockets import Dealer, Sockets, Unreachable
from gateway.stages.uploads import PICTURE
from wire.bundle import Bundle, Limits, unpack
from wire.control_codec import Buffer
from wire.errors import FrameTooLarge, InputLost, Loss, MalformedFrame, WireError
from wire.to_stage import InputRef
from wire.transfer import MAX_ANSWER_BYTES, Answer, Fetch, State, decode_answer
from wire.types import Handle

MAX_PICTURE_BYTES = 256 << 20
"""Of one finished picture; 4096 x 4096 pixels take 48 MB uncompressed."""

FETCHES = 16
"""At a time; further ones wait, so that pictures in memory stay few."""

MAX_IDLE_CONNECTIONS = 64

STALL_SECONDS = 10.0
"""Silence of a holder after which a fetch is given up."""


class ResultFetcher:
    """Fetches finished pictures from the stage servers that hold them, one per connection at a time."""

    def __init__(self, sockets: Sockets, stall_seconds: float = STALL_SECONDS) -> None:
        self._sockets = sockets
        self._stall_seconds = stall_seconds
        self._numbers = count(1)
        self._turns = asyncio.Semaphore(FETCHES)
        self._idle: OrderedDict[tuple[str, str], Dealer] = OrderedDict()
        """One connection per holder is kept, those used last come last."""

    async def fetch(self, ref: InputRef) -> bytes:
        """The picture behind ``ref``. Raises ``InputLost``; waits for its turn without a limit of its own."""
        async with self._turns:
            with self._connection(ref) as dealer:
                bundle = await self._pull(dealer, ref)
            return _picture(ref.handle, bundle)

    async def _pull(self, dealer: Dealer, ref: InputRef) -> Bundle:
        fetch = Fetch(ref.handle, next(self._numbers), limits=Limits(payload_bytes=MAX_PICTURE_BYTES))
        requests = [fetch.request()]
        while fetch.state is not State.COMPLETE:
            if not all(dealer.send(request) for request in requests):
                raise InputLost(ref.handle, Loss.UNREACHABLE, f"{ref.endpoint} takes no more requests")
            requests = fetch.feed(*await self._answer(dealer, ref))
            if fetch.state is State.OFFERED:
                requests += fetch.accept(memoryview(bytearray(fetch.nbytes)))
        return fetch.bundle

    async def _answer(self, dealer: Dealer, ref: InputRef) -> tuple[Answer, Buffer]:
        try:
            async with asyncio.timeout(self._stall_seconds):
                return decode_answer(await dealer.receive())
        except TimeoutError:
            silence = f"{ref.endpoint} was silent for {self._stall_seconds:g} s"
            raise InputLost(ref.handle, Loss.STALLED, silence) from None
        except WireError as error:
            raise InputLost(ref.handle, Loss.MALFORMED, str(error)) from error

    @contextmanager
    def _connection(self, ref: InputRef) -> Iterator[Dealer]:
        """Kept afterwards, unless something went wrong: then requests may still wait in it."""
        key = (ref.endpoint, ref.public_key)
        try:
            dealer = self._idle.pop(key, None) or self._sockets.dealer(*key, MAX_ANSWER_BYTES)
        except Unreachable as error:
            raise InputLost(ref.handle, Loss.UNREACHABLE, str(error)) from error
        try:
            yield dealer
        except BaseException:
            dealer.close()
            raise
        self._keep(key, dealer)

    def _keep(self, key: tuple[str, str], dealer: Dealer) -> None:
        surplus = self._idle.pop(key, None)
        self._idle[key] = dealer
        if surplus is None and len(self._idle) > MAX_IDLE_CONNECTIONS:
            _, surplus = self._idle.popitem(last=False)
        if surplus is not None:
            surplus.close()


def _picture(handle: Handle, bundle: Bundle) -> bytes:
    try:
        picture = unpack(bundle).get(PICTURE)
    except (MalformedFrame, FrameTooLarge) as error:
        raise InputLost(handle, Loss.MALFORMED, str(error)) from error
    if not isinstance(picture, bytes):
        raise InputLost(handle, Loss.MALFORMED, "there is no picture in the bundle")
    return picture

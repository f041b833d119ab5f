"""What the gateway holds for others (uploaded pictures) and what it fetches from them (finished ones).

The same protocol as between stage servers, ``wire.transfer``; here its sockets belong to the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import NoReturn

from gateway.sockets import Dealer, Router, Sockets, Unreachable
from wire.bundle import Bundle, Limits, pack, unpack
from wire.codec import Buffer
from wire.errors import FrameTooLarge, InputLost, Loss, MalformedFrame, WireError
from wire.to_stage import InputRef
from wire.transfer import MAX_ANSWER_BYTES, Answer, Fetch, State, decode_answer, serve
from wire.types import Handle

PICTURE = "image"
"""Name of the picture in a bundle: uploaded ones and finished ones alike."""

MAX_PICTURE_BYTES = 256 << 20
"""Of one finished picture; 4096 x 4096 pixels take 48 MB uncompressed."""

FETCHES = 16
"""At a time; further ones wait, so that pictures in memory stay few."""

MAX_IDLE_CONNECTIONS = 64

STALL_SECONDS = 10.0
"""Silence of a holder after which a fetch is given up."""

log = logging.getLogger(__name__)


class UploadsFull(Exception):
    """Uploaded pictures of the requests under way take all the room there is."""


class Uploads:
    """Serves uploaded pictures until they are dropped."""

    def __init__(self, router: Router, advertise: str, public_key: str, max_bytes: int) -> None:
        """``advertise``: the address under which stage servers reach ``router``."""
        self.nbytes = 0
        self._router = router
        self._endpoint = advertise
        self._public_key = public_key
        self._max_bytes = max_bytes
        self._bundles: dict[Handle, Bundle] = {}

    def hold(self, picture: bytes) -> InputRef:
        """Keep ``picture`` and say where it lies. Raises ``UploadsFull``."""
        bundle = pack({PICTURE: picture})
        if self.nbytes + bundle.total_bytes > self._max_bytes:
            raise UploadsFull(f"uploaded pictures take {self.nbytes} of {self._max_bytes} bytes")
        handle = Handle(secrets.token_hex(16))
        self._bundles[handle] = bundle
        self.nbytes += bundle.total_bytes
        return InputRef(handle=handle, endpoint=self._endpoint, nbytes=bundle.total_bytes, public_key=self._public_key)

    def drop(self, handle: Handle) -> None:
        bundle = self._bundles.pop(handle, None)
        if bundle is not None:
            self.nbytes -= bundle.total_bytes

    async def run(self) -> NoReturn:
        """Serve for ever."""
        while True:
            incoming = await self._router.receive()
            try:
                answer = serve(incoming.frames, self._bundles.get)
            except WireError as error:
                log.warning("a data request was dropped: %s", error)
                continue
            self._router.send(incoming.peer, answer)  # to one who is gone or does not read, nothing is owed


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

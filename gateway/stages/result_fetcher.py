"""Fetches finished pictures from the stage servers that hold them: ``wire.transfer``'s consumer on the event loop."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
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

MAX_ROOM_BYTES = 8 << 20
"""Of the buffers, one for each fetch under way, that are kept: fresh memory of that size costs more than to fill it."""

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
        self._idle: OrderedDict[tuple[str, str], list[Dealer]] = OrderedDict()
        """By holder, those used last come last: as many as were used at once are kept."""
        self._rooms: list[bytearray] = []
        """Into which bundles are fetched; a picture is copied out of it in the end."""
        self._kept = 0
        """Connections in all of them."""

    async def fetch(self, ref: InputRef) -> bytes:
        """The picture behind ``ref``. Raises ``InputLost``; waits for its turn without a limit of its own."""
        async with self._turns:
            dealer = self._connected(ref)
            room = self._rooms.pop() if self._rooms else bytearray()
            try:
                bundle = await self._pull(dealer, ref, room)
            except BaseException:
                dealer.close()  # requests may still wait in it
                raise
            self._keep(ref, dealer)
            picture = _picture(ref.handle, bundle)
            del bundle  # a view of the room, which cannot grow while it is there
            if len(room) <= MAX_ROOM_BYTES:
                self._rooms.append(room)
        return picture

    async def _pull(self, dealer: Dealer, ref: InputRef, room: bytearray) -> Bundle:
        fetch = Fetch(ref.handle, next(self._numbers), limits=Limits(payload_bytes=MAX_PICTURE_BYTES))
        requests = [fetch.request()]
        while fetch.state is not State.COMPLETE:
            if not all(dealer.send(request) for request in requests):
                raise InputLost(ref.handle, Loss.UNREACHABLE, f"{ref.endpoint} takes no more requests")
            requests = fetch.feed(*await self._answer(dealer, ref))
            if fetch.state is State.OFFERED:
                room.extend(bytes(max(0, fetch.nbytes - len(room))))
                requests += fetch.accept(memoryview(room)[: fetch.nbytes])
        return fetch.bundle

    async def _answer(self, dealer: Dealer, ref: InputRef) -> tuple[Answer, Buffer]:
        try:
            return decode_answer(await dealer.receive(self._stall_seconds))
        except TimeoutError:
            silence = f"{ref.endpoint} was silent for {self._stall_seconds:g} s"
            raise InputLost(ref.handle, Loss.STALLED, silence) from None
        except WireError as error:
            raise InputLost(ref.handle, Loss.MALFORMED, str(error)) from error

    def drop(self, endpoint: str) -> None:
        """Close what is idle of the connections there, which would go on trying to come about."""
        for holder in [holder for holder in self._idle if holder[0] == endpoint]:
            for dealer in self._idle.pop(holder):
                self._kept -= 1
                dealer.close()

    def _connected(self, ref: InputRef) -> Dealer:
        holder = (ref.endpoint, ref.public_key)
        idle = self._idle.get(holder)
        if idle:
            self._kept -= 1
            return idle.pop()
        try:
            return self._sockets.dealer(*holder, MAX_ANSWER_BYTES)
        except Unreachable as error:
            raise InputLost(ref.handle, Loss.UNREACHABLE, str(error)) from error

    def _keep(self, ref: InputRef, dealer: Dealer) -> None:
        holder = (ref.endpoint, ref.public_key)
        idle = self._idle.setdefault(holder, [])
        self._idle.move_to_end(holder)
        idle.append(dealer)
        self._kept += 1
        while self._kept > MAX_IDLE_CONNECTIONS:
            oldest, connections = next(iter(self._idle.items()))
            if connections:
                self._kept -= 1
                connections.pop(0).close()
            if not connections:
                del self._idle[oldest]


def _picture(handle: Handle, bundle: Bundle) -> bytes:
    try:
        picture = unpack(bundle).get(PICTURE)
    except (MalformedFrame, FrameTooLarge) as error:
        raise InputLost(handle, Loss.MALFORMED, str(error)) from error
    if not isinstance(picture, bytes):
        raise InputLost(handle, Loss.MALFORMED, "there is no picture in the bundle")
    return picture

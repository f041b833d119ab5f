"""Brings holders and fetchers together and copies bytes between them. Knows nothing of ZeroMQ, tensors or jobs.

Each stream has two TCP connections of its own and a buffer for each direction, and reads no more before the last of it
was taken: a receiver that is slow holds its own sender back, and nobody else's.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import socket
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from wire import relay as say
from wire.errors import MalformedFrame, ProtocolMismatch, WireError
from wire.relay import Reason
from wire.splice import prepare, splice, until_one_ends
from wire.version import check_protocol

MAX_STREAMS = 512
CONNECTIONS_PER_STREAM = 4
"""Two make one, and as many may hold or ask."""
BACKLOG = 256

HANDSHAKE_SECONDS = 5.0
"""In which a client has to say what it wants."""
OPEN_SECONDS = 3.0
"""In which a holder has to come for a stream. Less than the patience of whoever waits for it."""
MAX_AWAITED = 64
"""Streams for which one holder has not come yet; it does not read, if there are more."""
IDLE_SECONDS = 2.0
"""At the end, a stream is closed that has been silent for so long."""
ACCEPT_AGAIN_SECONDS = 0.1
"""After the system had no room for a connection."""

_MESSAGES = {
    Reason.FULL: "the relay has as many streams as it may: raise its --max-streams, or use another relay as well",
    Reason.UNKNOWN: "the server is not connected to the relay",
    Reason.UNOPENED: "the server is connected to the relay, and does not come for those who want to reach it",
    Reason.KEY: "its key is not that of the relay: --relay-key of both must be equal",
}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    nbytes: int = 0
    """Copied, in both directions."""
    streams: int = 0
    """Begun."""
    denied: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(Reason, 0))


@dataclass(slots=True, eq=False)
class _Holder:
    """Who may be reached, and what is still to be said to it."""

    outbox: asyncio.Queue[say.FromRelay] = field(default_factory=lambda: asyncio.Queue(MAX_AWAITED))
    awaited: int = 0
    """Streams for which it has not come yet."""


@dataclass(slots=True, eq=False)
class _Arrival:
    """A holder's connection for a stream. Its task keeps it until it is ``over``."""

    connection: socket.socket
    over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True, eq=False)
class _Stream:
    task: asyncio.Task[Any]
    moved_at: float
    """When bytes last passed."""


class Relay:
    """``run`` once, on an event loop of its own."""

    def __init__(
        self,
        listener: socket.socket,
        key: str = "",
        *,
        max_streams: int = MAX_STREAMS,
        beat_seconds: float = say.BEAT_SECONDS,
        silence_seconds: float = say.SILENCE_SECONDS,
        open_seconds: float = OPEN_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        """``key``: that holders must have. ``listener`` belongs to the relay from now on."""
        listener.setblocking(False)
        self._listener = listener
        self._key = key
        self._max_streams = max_streams
        self._beat_seconds = beat_seconds
        self._silence_seconds = silence_seconds
        self._open_seconds = open_seconds
        self._idle_seconds = idle_seconds
        self.counts = Counts()
        self.holders: dict[str, _Holder] = {}
        self.streams: set[_Stream] = set()
        self._stream_ended = asyncio.Event()
        self._awaited: dict[str, asyncio.Future[_Arrival]] = {}
        """By stream, for which holders have not come yet."""
        self._connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    connection, _ = await loop.sock_accept(self._listener)
                except OSError as error:
                    log.warning("no connection can be accepted: %s", error)
                    await asyncio.sleep(ACCEPT_AGAIN_SECONDS)
                    continue
                if self._connections >= CONNECTIONS_PER_STREAM * self._max_streams:
                    connection.close()
                    self.counts.denied[Reason.FULL] += 1
                    continue
                self._start(self._serve(connection))
        finally:
            self._listener.close()

    async def drain(self, seconds: float) -> None:
        """After ``run`` has ended: let transfers that are under way end, for so long at most, and close everything."""
        loop = asyncio.get_running_loop()
        limit = loop.time() + seconds
        while self.streams and (now := loop.time()) < limit:
            idle_at = {stream: stream.moved_at + self._idle_seconds for stream in self.streams}
            for stream in [stream for stream, at in idle_at.items() if at <= now]:
                stream.task.cancel()
                self.streams.discard(stream)
            self._stream_ended.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.01, min([limit, *idle_at.values()]) - now)):
                    await self._stream_ended.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- one connection -----------------------------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        self._connections += 1
        try:
            prepare(connection)
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                wanted = await _received(connection)
            match wanted:
                case say.Join() | say.Beat():
                    raise MalformedFrame(f"a connection does not begin with {type(wanted).__name__}")
                case _ if why := _mismatch(wanted.protocol):
                    await self._deny(connection, Reason.VERSION, why)
                case say.Hold():
                    await self._hold(connection)
                case say.Seek(name=name) if name in self.holders:
                    await _send(connection, say.Granted())
                case say.Seek():
                    await self._deny(connection, Reason.UNKNOWN)
                case say.Fetch(name=name):
                    await self._fetch(connection, name)
                case say.Come(stream=stream):
                    await self._come(connection, stream)
        except (OSError, TimeoutError, WireError) as error:
            log.debug("a connection ended: %s", error)
        finally:
            self._connections -= 1
            connection.close()

    async def _deny(self, connection: socket.socket, reason: Reason, message: str = "") -> None:
        self.counts.denied[reason] += 1
        await _send(connection, say.Denied(reason=reason, message=message or _MESSAGES[reason]))

    # --- streams ------------------------------------------------------------------------------------------------------

    async def _fetch(self, connection: socket.socket, name: str) -> None:
        holder = self.holders.get(name)
        if holder is None:
            await self._deny(connection, Reason.UNKNOWN)
        elif len(self.streams) + len(self._awaited) >= self._max_streams or holder.awaited >= MAX_AWAITED:
            await self._deny(connection, Reason.FULL)
        elif (arrival := await self._called(holder)) is None:
            await self._deny(connection, Reason.UNOPENED)
        else:
            try:
                await self._join(connection, arrival.connection)
            finally:
                arrival.over.set()

    async def _called(self, holder: _Holder) -> _Arrival | None:
        """The holder's connection for a new stream; none where it does not come."""
        stream = secrets.token_hex(16)
        coming: asyncio.Future[_Arrival] = asyncio.get_running_loop().create_future()
        self._awaited[stream] = coming
        holder.awaited += 1
        try:
            holder.outbox.put_nowait(say.Open(stream=stream))
            async with asyncio.timeout(self._open_seconds):
                return await coming
        except (TimeoutError, asyncio.QueueFull):
            if coming.done() and not coming.cancelled():  # it came in the very moment
                coming.result().over.set()
            return None
        finally:
            holder.awaited -= 1
            self._awaited.pop(stream, None)

    async def _come(self, connection: socket.socket, stream: str) -> None:
        coming = self._awaited.pop(stream, None)
        if coming is None or coming.done():
            await self._deny(connection, Reason.UNKNOWN)
            return
        arrival = _Arrival(connection)
        coming.set_result(arrival)
        await arrival.over.wait()

    async def _join(self, fetcher: socket.socket, holder: socket.socket) -> None:
        await _send(holder, say.Granted())
        await _send(fetcher, say.Granted())
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # noqa: S101 # for the type checker: a coroutine runs in one
        stream = _Stream(task, loop.time())

        def passed(nbytes: int) -> None:
            self.counts.nbytes += nbytes
            stream.moved_at = loop.time()

        self.streams.add(stream)
        self.counts.streams += 1
        try:
            await splice(fetcher, holder, passed)
        finally:
            self.streams.discard(stream)
            self._stream_ended.set()

    # --- holders ------------------------------------------------------------------------------------------------------

    async def _hold(self, connection: socket.socket) -> None:
        nonce = secrets.token_bytes(32)
        await _send(connection, say.Challenge(nonce=nonce))
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            message = await _received(connection)
        if not isinstance(message, say.Join):
            raise MalformedFrame("a challenge is answered with Join")
        if not hmac.compare_digest(message.proof, say.prove(self._key, nonce, message.name)):
            log.warning("%s was turned away: %s", _peer(connection), _MESSAGES[Reason.KEY])
            await self._deny(connection, Reason.KEY)
            return
        holder = self.holders[message.name] = _Holder()  # in place of a connection that was lost unnoticed, perhaps
        await _send(connection, say.Granted())
        log.info("%s is reached through this relay now", _peer(connection))
        try:
            await until_one_ends(self._speak(connection, holder), self._hear(connection))
        finally:
            if self.holders.get(message.name) is holder:
                del self.holders[message.name]
            log.info("%s is no longer reached through this relay", _peer(connection))

    async def _speak(self, connection: socket.socket, holder: _Holder) -> None:
        while True:
            message: say.FromRelay = say.Beat()
            try:
                async with asyncio.timeout(self._beat_seconds):
                    message = await holder.outbox.get()
            except TimeoutError:
                pass
            await _send(connection, message)

    async def _hear(self, connection: socket.socket) -> None:
        while True:
            async with asyncio.timeout(self._silence_seconds):
                await _received(connection)


def _mismatch(protocol: tuple[int, int]) -> str:
    try:
        check_protocol(protocol)
    except ProtocolMismatch as error:
        return str(error)
    return ""


async def _send(connection: socket.socket, message: say.FromRelay) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, say.encode(message))


async def _received(connection: socket.socket) -> say.ToRelay:
    return say.decode_to_relay(await _exactly(connection, say.length(await _exactly(connection, say.PREFIX_BYTES))))


async def _exactly(connection: socket.socket, nbytes: int) -> bytes:
    """Raises ``OSError`` where the other side closes it before."""
    received = b""
    while len(received) < nbytes:
        piece = await asyncio.get_running_loop().sock_recv(connection, nbytes - len(received))
        if not piece:
            raise ConnectionResetError("closed by the other side")
        received += piece
    return received


def _peer(connection: socket.socket) -> str:
    try:
        host, port, *_ = connection.getpeername()
    except OSError:  # gone meanwhile
        return "somebody"
    return f"{host}:{port}".removeprefix("::ffff:")

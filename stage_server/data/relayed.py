"""Serves outputs to those who come through a relay, since they cannot connect to this process.

One thread keeps up the connection over which the relay says who has come; another serves each of them on a socket of
its own, which connects to the relay as well. So nobody's requests, and nobody's answers, wait behind somebody else's.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from collections import deque
from collections.abc import Collection
from contextlib import suppress

import zmq

from stage_server.data.desk import Desk, configure
from wire import relay as say
from wire.dial import DIAL_SECONDS, receive_exactly, through_relay
from wire.errors import MalformedFrame, WireError
from wire.security import CurveKeys
from wire.transfer import Lookup
from wire.version import PROTOCOL, check_protocol

MAX_STREAMS = 512
"""At once; for those beyond nobody comes to the relay."""

RETRY_SECONDS = 1.0
NEVER_MS = 1 << 30
"""A stream is never taken up again: its connection would reach somebody else."""

_OVER = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_CLOSE_SECONDS = 5.0

log = logging.getLogger(__name__)


class TurnedAway(Exception):
    """The relay does not want this server; the text is for the operator."""


class RelayedHolder:
    """Serves ``lookup`` at ``endpoint`` from construction until ``close``, whenever the relay is there."""

    def __init__(
        self,
        relay: str,
        lookup: Lookup,
        *,
        key: str = "",
        keys: CurveKeys | None = None,
        identity: str = "",
        aliases: Collection[str] = (),
        retry_seconds: float = RETRY_SECONDS,
        silence_seconds: float = say.SILENCE_SECONDS,
    ) -> None:
        """``relay``: ``tcp://HOST:PORT``; ``key``: the relay's, which both must have. The rest is as in ``Holder``.

        Returns at once where the relay is not reached: it is tried again. Raises ``TurnedAway``.
        """
        self.is_joined = threading.Event()
        """The relay is there, and lets others through to here."""
        self._relay = relay
        self._name = secrets.token_hex(16)
        self.endpoint = say.address(relay, self._name)
        self._key = key
        self._retry_seconds = retry_seconds
        self._silence_seconds = silence_seconds
        self._stop = threading.Event()
        self._trouble = ""
        """What was last said about it, once."""
        self._connection: socket.socket | None = None
        self._join()
        self._streams = _Streams(relay, Desk(lookup, identity, aliases), keys)
        self._thread = threading.Thread(target=self._keep, name="relay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Closing twice is harmless."""
        self._stop.set()
        self._part()
        self._thread.join(_CLOSE_SECONDS)
        self._streams.close()

    def _keep(self) -> None:
        while not self._stop.is_set():
            if self._connection is not None:
                self._listen(self._connection)
                self.is_joined.clear()
                self._connection.close()
                self._connection = None
            if self._stop.wait(self._retry_seconds):
                return
            try:
                self._join()
            except TurnedAway as error:
                self._complain(str(error))

    def _join(self) -> None:
        """Raises ``TurnedAway``."""
        try:
            connection = through_relay(self._relay, say.HOLD)
        except OSError as error:
            self._complain(f"the relay {self._relay} is not reached, and is tried again: {error}")
            return
        try:
            self._introduce(connection)
        except (OSError, WireError) as error:
            connection.close()
            self._complain(f"the relay {self._relay} does not let this server join, and is asked again: {error}")
        except TurnedAway:
            connection.close()
            raise
        else:
            connection.settimeout(self._silence_seconds)
            self._connection = connection
            self._trouble = ""
            self.is_joined.set()
            log.info("others reach this server through the relay %s", self._relay)

    def _introduce(self, connection: socket.socket) -> None:
        connection.settimeout(DIAL_SECONDS)
        challenge = _received(connection)
        if not isinstance(challenge, say.Challenge):
            raise MalformedFrame("a relay's first message is Challenge")
        check_protocol(challenge.protocol)
        proof = say.prove(self._key, challenge.nonce, self._name)
        connection.sendall(say.encode(say.Join(protocol=PROTOCOL, name=self._name, proof=proof)))
        match _received(connection):
            case say.Joined():
                return
            case say.Rejected(message=message):
                raise TurnedAway(f"the relay {self._relay} turns this server away: {message}")
            case _:
                raise MalformedFrame("a relay answers Join with Joined or Rejected")

    def _listen(self, connection: socket.socket) -> None:
        """Until the connection is lost."""
        try:
            while True:
                match _received(connection):
                    case say.Open(stream=stream):
                        self._streams.open(stream)
                    case say.Beat():
                        connection.sendall(say.encode(say.Beat()))
        except (OSError, WireError) as error:
            if not self._stop.is_set():
                why = f"silent for {self._silence_seconds:g} s" if isinstance(error, TimeoutError) else error
                self._complain(f"the relay {self._relay} is lost, and is tried again: {why}")

    def _part(self) -> None:
        if (connection := self._connection) is not None:
            with suppress(OSError):  # lost, or closed meanwhile
                connection.shutdown(socket.SHUT_RDWR)

    def _complain(self, text: str) -> None:
        if text != self._trouble:
            self._trouble = text
            log.warning("%s", text)


class _Streams:
    """A thread with a socket for each stream."""

    def __init__(self, relay: str, desk: Desk, keys: CurveKeys | None) -> None:
        self._proxy = relay.removeprefix("tcp://")
        self._desk = desk
        self._keys = keys
        self._asked: deque[str] = deque(maxlen=MAX_STREAMS)
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._closed = False
        self._context = zmq.Context(io_threads=1)
        self._poller = zmq.Poller()
        self._poller.register(self._woken, zmq.POLLIN)
        self._routers: dict[zmq.Socket[bytes], zmq.Socket[bytes]] = {}
        """Each by its monitor."""
        self._thread = threading.Thread(target=self._loop, name="relayed-holder", daemon=True)
        self._thread.start()

    def open(self, stream: str) -> None:
        """From any thread."""
        self._asked.append(stream)
        self._rouse()

    def close(self) -> None:
        self._closed = True
        self._rouse()
        self._thread.join(_CLOSE_SECONDS)

    def _rouse(self) -> None:
        with suppress(OSError):  # full: it is awake anyway; closed: nobody listens any more
            self._wake.send(b"\0")

    def _loop(self) -> None:
        try:
            while not self._closed:
                ready = dict(self._poller.poll())
                if self._woken.fileno() in ready:
                    self._woken.recv(4096)
                    while self._asked:
                        self._begin(self._asked.popleft())
                for monitor, router in list(self._routers.items()):
                    if router in ready:
                        self._desk.answer_some(router)
                    if monitor in ready:
                        self._end(monitor)
        finally:
            self._context.destroy(linger=0)
            self._wake.close()
            self._woken.close()

    def _begin(self, stream: str) -> None:
        if len(self._routers) >= MAX_STREAMS:
            return
        router: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        configure(router, self._keys)
        router.reconnect_ivl = NEVER_MS
        router.setsockopt_string(zmq.SOCKS_PROXY, self._proxy)
        monitor: zmq.Socket[bytes] = router.get_monitor_socket(_OVER)
        self._routers[monitor] = router
        self._poller.register(router, zmq.POLLIN)
        self._poller.register(monitor, zmq.POLLIN)
        router.connect(say.zmq_target(say.STREAM, stream))

    def _end(self, monitor: zmq.Socket[bytes]) -> None:
        """The connection is lost, or was never made; whatever was still to be sent on it is dropped."""
        router = self._routers.pop(monitor)
        self._poller.unregister(router)
        self._poller.unregister(monitor)
        router.disable_monitor()
        monitor.close(linger=0)
        router.close(linger=0)


def _received(connection: socket.socket) -> say.ToHolder:
    return say.decode_to_holder(receive_exactly(connection, say.length(receive_exactly(connection, 2))))

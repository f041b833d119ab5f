"""Leads those who come through a relay, since they cannot connect to this process, to the socket that serves outputs.

A thread keeps up the connection over which the relay says that somebody has come. For each of them a connection to the
relay and one to the own socket are made one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import threading
from contextlib import suppress

from stage_server.data.loop_thread import LoopThread
from wire import relay as say
from wire.dial import DIAL_SECONDS, connected, receive_from_relay, through_relay
from wire.errors import MalformedFrame, WireError
from wire.splice import prepare, splice
from wire.version import PROTOCOL

RETRY_SECONDS = 1.0
MAX_STREAMS = 512
"""At once; for those beyond nobody comes to the relay."""
_CLOSE_SECONDS = 5.0

log = logging.getLogger(__name__)


class TurnedAway(Exception):
    """The relay does not want this server; the text is for the operator."""


class Relayed:
    """The socket at ``bound`` is reached at ``endpoint`` as well, whenever the relay is there, until ``close``."""

    def __init__(
        self,
        relay: str,
        bound: str,
        loop: LoopThread,
        *,
        key: str = "",
        retry_seconds: float = RETRY_SECONDS,
        silence_seconds: float = say.SILENCE_SECONDS,
    ) -> None:
        """``relay``: ``tcp://HOST:PORT``; ``key``: the relay's, which both must have. Streams are served on ``loop``.

        Returns at once where the relay is not reached: it is tried again. Raises ``TurnedAway``.
        """
        self.is_joined = threading.Event()
        """The relay is there, and lets others through to here."""
        self._relay = relay
        self._bound = bound
        self._loop = loop
        self._name = secrets.token_hex(16)
        self.endpoint = say.address(relay, self._name)
        self._key = key
        self._retry_seconds = retry_seconds
        self._silence_seconds = silence_seconds
        self._stop = threading.Event()
        self._trouble = ""
        """What was said about it last, once."""
        self._connection: socket.socket | None = None
        self._streams = 0
        self._join()
        self._thread = threading.Thread(target=self._keep, name="relay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Closing twice is harmless."""
        self._stop.set()
        if (connection := self._connection) is not None:
            with suppress(OSError):  # lost, or closed meanwhile
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(_CLOSE_SECONDS)

    def _keep(self) -> None:
        while True:
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
            connection = through_relay(self._relay, say.Hold(protocol=PROTOCOL))
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
        answer = receive_from_relay(connection)
        if isinstance(answer, say.Challenge):
            proof = say.prove(self._key, answer.nonce, self._name)
            connection.sendall(say.encode(say.Join(name=self._name, proof=proof)))
            answer = receive_from_relay(connection)
        match answer:
            case say.Granted():
                return
            case say.Denied(message=message):
                raise TurnedAway(f"the relay {self._relay} turns this server away: {message}")
            case _:
                raise MalformedFrame(f"a relay does not let a server in with {type(answer).__name__}")

    def _listen(self, connection: socket.socket) -> None:
        """Until the connection is lost."""
        try:
            while True:
                match receive_from_relay(connection):
                    case say.Open(stream=stream):
                        self._loop.start(self._come(stream))
                    case say.Beat():
                        connection.sendall(say.encode(say.Beat()))
        except (OSError, WireError) as error:
            if not self._stop.is_set():
                why = f"silent for {self._silence_seconds:g} s" if isinstance(error, TimeoutError) else error
                self._complain(f"the relay {self._relay} is lost, and is tried again: {why}")

    async def _come(self, stream: str) -> None:
        """For whoever waits there: the one connection leads to the own socket, the other to the relay."""
        if self._streams >= MAX_STREAMS:
            return
        wanted = say.Come(protocol=PROTOCOL, stream=stream)
        loop = asyncio.get_running_loop()
        self._streams += 1
        try:
            with await loop.run_in_executor(None, connected, self._bound) as own:
                prepare(own)
                with await loop.run_in_executor(None, through_relay, self._relay, wanted) as other:
                    prepare(other)
                    await splice(own, other)
        except OSError as error:
            log.debug("no more of a stream through the relay %s: %s", self._relay, error)
        finally:
            self._streams -= 1

    def _complain(self, text: str) -> None:
        if text != self._trouble:
            self._trouble = text
            log.warning("%s", text)

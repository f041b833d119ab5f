"""What stands in the way of a connection, in words for the operator. Blocks: not for event loops."""

from __future__ import annotations

import re
import socket
import threading
from time import monotonic
from typing import Any

from wire import relay as say
from wire.errors import WireError
from wire.version import PROTOCOL

DIAL_SECONDS = 3.0
NO_RELAY = "no relay of DisagFusion answers there"

HUNG_UP = "it hangs up in the handshake: no socket of DisagFusion is there, or its CURVE keys are not those expected"
MUTE = "it accepts connections and says nothing"

_SIGNATURE_AND_VERSION = b"\xff" + bytes(8) + b"\x7f\x03"
_MECHANISM = slice(12, 32)
"""Where a ZMTP 3 greeting names it."""

_TCP = re.compile(r"tcp://\[?(.+?)\]?:(\d+)")


def resolve(endpoint: str, seconds: float = DIAL_SECONDS) -> list[tuple[Any, ...]]:
    """``socket.getaddrinfo`` of a ``tcp://HOST:PORT``, with a limit; a port ``*`` counts as any.

    Raises ``OSError`` with a text that names the host.
    """
    found = _TCP.fullmatch(endpoint.replace(":*", ":0"))
    if found is None:
        raise OSError(f"{endpoint} is not tcp://HOST:PORT")
    host, port = found[1], int(found[2])
    answer: list[list[tuple[Any, ...]] | OSError] = []

    def ask() -> None:
        try:
            answer.append(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except OSError as error:
            answer.append(OSError(f"the name {host!r} does not resolve: {error.strerror}"))

    thread = threading.Thread(target=ask, name="resolver", daemon=True)
    thread.start()
    thread.join(seconds)
    outcome = answer[0] if answer else OSError(f"the name {host!r} does not resolve within {seconds:g} s")
    if isinstance(outcome, OSError):
        raise outcome
    return outcome


def dial(endpoint: str, seconds: float = DIAL_SECONDS) -> str:
    """Why no TCP connection to ``endpoint`` comes about; empty if one does, or the address is of another kind.

    Behind a relay: why the relay could not bring it about.
    """
    through = say.way(endpoint)
    if through is None and not endpoint.startswith("tcp://"):
        return ""
    try:
        if through is None:
            connected(endpoint, seconds).close()
        else:
            through_relay(through.relay, say.Seek(protocol=PROTOCOL, name=through.name), seconds).close()
    except OSError as error:
        return str(error)
    return ""


def connected(endpoint: str, seconds: float = DIAL_SECONDS) -> socket.socket:
    """A connection to ``tcp://HOST:PORT``. Raises ``OSError`` whose text says what is in the way."""
    limit = monotonic() + seconds
    fault = ""
    for family, kind, protocol, _, address in resolve(endpoint, seconds):
        try:
            trial = socket.socket(family, kind, protocol)
        except OSError as error:
            raise OSError(f"no socket can be made here: {error.strerror}") from None
        trial.settimeout(max(0.1, limit - monotonic()))
        try:
            trial.connect(address)
        except ConnectionRefusedError:
            fault = "connection refused: nothing listens there"
        except TimeoutError:
            fault = f"no answer within {seconds:g} s: a firewall drops the packets, or nobody has that address"
        except OSError as error:
            fault = f"{error.strerror}: no way leads there"
        else:
            return trial
        trial.close()
    raise OSError(fault)


def through_relay(endpoint: str, wanted: say.Wanted, seconds: float = DIAL_SECONDS) -> socket.socket:
    """A connection to the relay at ``endpoint``, which has granted what is ``wanted``; to ``Hold`` its answer follows.

    Raises ``OSError`` likewise.
    """
    connection = connected(endpoint, seconds)
    fault = ""
    try:
        connection.sendall(say.encode(wanted))
        if not isinstance(wanted, say.Hold):
            match receive_from_relay(connection):
                case say.Granted():
                    pass
                case say.Denied(message=message):
                    fault = message
                case _:
                    fault = NO_RELAY
    except TimeoutError:
        fault = f"it accepts connections and does not answer as a relay within {seconds:g} s"
    except (OSError, WireError):
        fault = f"it hangs up: {NO_RELAY}"
    if fault:
        connection.close()
        raise OSError(fault)
    return connection


def receive_from_relay(connection: socket.socket) -> say.FromRelay:
    """Raises ``OSError`` or ``WireError``."""
    size = say.length(receive_exactly(connection, say.PREFIX_BYTES))
    return say.decode_from_relay(receive_exactly(connection, size))


def receive_exactly(connection: socket.socket, nbytes: int) -> bytes:
    """Raises ``ConnectionError`` where the other side closes it before, and ``OSError``."""
    received = b""
    while len(received) < nbytes:
        piece = connection.recv(nbytes - len(received))
        if not piece:
            raise ConnectionResetError("closed by the other side")
        received += piece
    return received


def announced_mechanism(endpoint: str, seconds: float = DIAL_SECONDS) -> str:
    """The security mechanism that whoever listens at ``tcp://HOST:PORT`` announces: ``NULL``, ``CURVE`` …

    Empty where nobody does, or what listens there is no ZeroMQ socket. Asked by the first bytes of a greeting alone: to
    a whole one, of another mechanism, libzmq hangs up at times before it has named its own.
    """
    greeting = b""
    try:
        with socket.create_connection(resolve(endpoint, seconds)[0][4][:2], seconds) as trial:
            trial.sendall(_SIGNATURE_AND_VERSION)
            while len(greeting) < _MECHANISM.stop and (piece := trial.recv(64)):
                greeting += piece
    except OSError:
        return ""
    complete = len(greeting) >= _MECHANISM.stop and greeting[:1] == b"\xff"
    return greeting[_MECHANISM].rstrip(b"\0").decode("ascii", "replace") if complete else ""

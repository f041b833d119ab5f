"""Tries whether another server's data socket can be reached, and is the one expected. Blocks for seconds."""

from __future__ import annotations

from functools import cache
from time import monotonic

import zmq

from stage_server.data.contexts import started
from wire.dial import DIAL_SECONDS, HUNG_UP, MUTE, dial
from wire.errors import WireError
from wire.security import CurveKeys, valid_key
from wire.to_stage import TryPeer
from wire.transfer import MAX_ANSWER_BYTES, decode_answer, probe, recognised

_HUNG_UP = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


_context = cache(started)
"""One for all trials."""


def prepare() -> None:
    """What a trial needs, while there is room for it."""
    _context()


def try_peer(peer: TryPeer, keys: CurveKeys | None, seconds: float = DIAL_SECONDS) -> str:
    """The address and what happened there; empty where ``peer`` answers."""
    limit = monotonic() + seconds
    try:
        fault = dial(peer.endpoint, seconds) or _mismatch(peer, keys) or _greet(peer, keys, limit)
    except zmq.ZMQError as error:  # this process may have no descriptor left for a socket
        fault = f"it cannot be asked from here: {zmq.strerror(error.errno or 0)}"
    return f"{peer.endpoint}: {fault}" if fault else ""


def _mismatch(peer: TryPeer, keys: CurveKeys | None) -> str:
    if keys is None and peer.public_key:
        return "it asks for encryption, and no CURVE keys are configured here"
    if keys is not None and not valid_key(peer.public_key):
        return "CURVE keys are configured here, and its public key is missing or not one"
    return ""


def _greet(peer: TryPeer, keys: CurveKeys | None, limit: float) -> str:
    with _context().socket(zmq.DEALER) as dealer:
        dealer.ipv6 = True
        dealer.linger = 0
        dealer.maxmsgsize = MAX_ANSWER_BYTES
        if keys is not None:
            dealer.curve_serverkey = peer.public_key.encode()
            dealer.curve_publickey = keys.public.encode()
            dealer.curve_secretkey = keys.secret.encode()
        monitor = dealer.get_monitor_socket(_HUNG_UP)
        try:
            dealer.connect(peer.endpoint)
            dealer.send_multipart(probe(1, peer.server))
            poller = zmq.Poller()
            poller.register(dealer, zmq.POLLIN)
            poller.register(monitor, zmq.POLLIN)
            ready = dict(poller.poll(int(1000 * max(1.0, limit - monotonic()))))
            if dealer not in ready:
                return HUNG_UP if monitor in ready else MUTE
            answer, _ = decode_answer(dealer.recv_multipart())
        except WireError as error:
            return str(error)
        else:
            return recognised(answer)
        finally:
            dealer.disable_monitor()
            monitor.close(linger=0)

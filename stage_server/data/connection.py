"""A consumer's connection to one holder, and the transfers that go over it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import zmq

from stage_server.data.multipart import send
from wire.bundle import Bundle
from wire.control_codec import Buffer
from wire.errors import InputLost, Loss
from wire.security import CurveKeys, valid_key
from wire.to_stage import InputRef
from wire.transfer import MAX_ANSWER_BYTES, Fetch

_FAULTS: dict[int, str] = {zmq.EVENT_DISCONNECTED: "connection lost", zmq.EVENT_CONNECT_RETRIED: "connection refused"}
_LOST = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


@dataclass(slots=True, eq=False, weakref_slot=True)
class Transfer:
    ref: InputRef
    fetch: Fetch
    future: Future[Bundle]
    deadline: float
    silent_until: float = math.inf
    """When the holder's silence has lasted too long; counts while the transfer is under way."""

    @property
    def limit(self) -> float:
        return min(self.deadline, self.silent_until)


@dataclass(slots=True, eq=False)
class Holder:
    """A connection and what goes over it."""

    endpoint: str
    dealer: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]
    active: dict[int, Transfer] = field(default_factory=dict)
    waiting: deque[Transfer] = field(default_factory=deque)

    def transfers(self) -> Iterator[Transfer]:
        yield from self.active.values()
        yield from self.waiting

    @property
    def idle(self) -> bool:
        return not self.active and not self.waiting

    def due(self, most_under_way: int, most_ahead: int) -> Transfer | None:
        """The first of those that wait and may begin. What is asked for ahead of time is in nobody's way: it may lie at
        its holder for seconds, with nothing on this connection."""
        ahead = sum(each.fetch.is_ahead for each in self.active.values())
        has_room = {True: ahead < most_ahead, False: len(self.active) - ahead < most_under_way}
        return next((each for each in self.waiting if has_room[each.fetch.is_ahead]), None)

    def send(self, messages: list[list[Buffer]]) -> None:
        for message in messages:
            send(self.dealer, message)

    def forget(self, transfer: Transfer) -> None:
        if self.active.pop(transfer.fetch.transfer, None) is None and transfer in self.waiting:
            self.waiting.remove(transfer)

    def close(self) -> None:
        self.dealer.disable_monitor()
        self.monitor.close(linger=0)
        self.dealer.close(linger=0)


def connect(context: zmq.Context[zmq.Socket[bytes]], ref: InputRef, keys: CurveKeys | None) -> Holder:
    """To the holder that ``ref`` names; nothing is sent yet. Raises ``InputLost``."""
    try:
        dealer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    except zmq.ZMQError as error:
        raise _unreachable(ref, error) from error
    dealer.ipv6 = True
    dealer.linger = 0
    dealer.maxmsgsize = MAX_ANSWER_BYTES
    try:
        _secure(dealer, ref, keys)
        holder = Holder(ref.endpoint, dealer, dealer.get_monitor_socket(_LOST))
    except InputLost:
        dealer.close()
        raise
    except zmq.ZMQError as error:
        dealer.close()
        raise _unreachable(ref, error) from error
    try:
        dealer.connect(ref.endpoint)
    except zmq.ZMQError as error:
        holder.close()
        raise _unreachable(ref, error) from error
    return holder


def fault(event: int) -> str:
    """What an event of a ``monitor`` says, for people."""
    return _FAULTS.get(event, "the handshake failed")


def _unreachable(ref: InputRef, error: zmq.ZMQError) -> InputLost:
    detail = f"holder {ref.endpoint!r}: {zmq.strerror(error.errno or 0)}"
    return InputLost(ref.handle, Loss.UNREACHABLE, detail)


def _secure(dealer: zmq.Socket[bytes], ref: InputRef, keys: CurveKeys | None) -> None:
    if keys is None and not ref.public_key:
        return
    if keys is None:
        raise _unsafe(ref, "its holder asks for encryption, and no CURVE keys are configured here")
    if not valid_key(ref.public_key):
        raise _unsafe(ref, "CURVE keys are configured here, and its holder's public key is missing or not one")
    dealer.curve_serverkey = ref.public_key.encode()
    dealer.curve_publickey = keys.public.encode()
    dealer.curve_secretkey = keys.secret.encode()


def _unsafe(ref: InputRef, detail: str) -> InputLost:
    return InputLost(ref.handle, Loss.REFUSED, detail)

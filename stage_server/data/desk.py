"""Answers requests for outputs, on whatever ROUTER they come. Used by the thread of its holder alone."""

from __future__ import annotations

import errno
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import zmq

from wire.control_codec import Buffer
from wire.errors import WireError
from wire.security import CurveKeys
from wire.transfer import MAX_FIELDS_BYTES, Lookup, serve

COPY_BELOW = 64 << 10
"""Bytes; handing over a reference costs more than copying so little."""

SEND_QUEUE = 256
"""Answers that wait for one slow consumer; one that asks for more without reading loses them."""

BURST = 16
"""Requests that are answered in a row, before the holder looks for anything else."""

HANDSHAKE_MS = 5_000

log = logging.getLogger(__name__)


@dataclass(slots=True)
class HolderStatistics:
    answered: int = 0
    unreadable: int = 0
    """Requests that nobody could make sense of."""
    undelivered: int = 0
    """Answers to consumers that were gone or did not read."""
    denied: int = 0
    """Connections that the allow-list or their number turned away."""


class Desk:
    def __init__(self, lookup: Lookup, identity: str, aliases: Collection[str]) -> None:
        """See ``Holder``."""
        self.statistics = HolderStatistics()
        self._lookup = lookup
        self._identity = identity
        self._aliases = aliases

    def answer_some(self, router: zmq.Socket[bytes]) -> None:
        for _ in range(BURST):
            try:
                peer, *frames = router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._answer(router, peer, frames)

    def _answer(self, router: zmq.Socket[bytes], peer: bytes, frames: list[bytes]) -> None:
        try:
            answers = serve(frames, self._lookup, self._identity, self._aliases)
        except WireError as error:
            self.statistics.unreadable += 1
            log.debug("data request dropped: %s", error)
            return
        for answer in answers:
            self._send(router, [peer, *answer])

    def _send(self, router: zmq.Socket[bytes], frames: Sequence[Buffer]) -> None:
        try:
            router.send_multipart(frames, flags=zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, errno.EAGAIN):
                raise
            self.statistics.undelivered += 1
        else:
            self.statistics.answered += 1


def configure(router: zmq.Socket[bytes], keys: CurveKeys | None) -> None:
    """As a socket that serves outputs."""
    router.ipv6 = True
    router.linger = 0
    router.maxmsgsize = MAX_FIELDS_BYTES
    router.router_mandatory = True
    router.sndhwm = SEND_QUEUE
    router.handshake_ivl = HANDSHAKE_MS
    router.copy_threshold = COPY_BELOW
    if keys is not None:
        router.curve_server = True
        router.curve_secretkey = keys.secret.encode()

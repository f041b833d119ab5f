"""Swaps the halves of guided steps with the server that computes the other ones: ``stage_server.engine.base.Partner``.

Each lays its half into its own mailbox, under the handle that the gateway chose for it and the number of the step, and
pulls the other's as it would any input. Where that is not there yet, the holder's answer waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from threading import Lock
from time import monotonic

import msgspec

from stage_server.data.consumer import Consumer, TooManyFetches
from stage_server.data.mailbox import Mailbox
from wire.bundle import Bundle, pack, unpack
from wire.errors import InputLost, Loss, WireError
from wire.to_stage import Half
from wire.types import Handle
from wire.values import Value

_NOTHING = pack({})
"""Word that no half comes any more."""

LONGEST_WAIT = 5.0
"""Seconds for which one request waits at its holder; more are asked in a row. Less than a holder may be silent."""


class Exchange:
    def __init__(self, half: Half, mailbox: Mailbox, consumer: Consumer) -> None:
        self.leads = half.leads
        self._half = half
        self._mailbox = mailbox
        self._consumer = consumer
        self._lock = Lock()
        self._given = 0
        self._fetch: Future[Bundle] | None = None
        self._is_over = False

    def give(self, step: int, values: Mapping[str, Value]) -> None:
        bundle = pack(values)
        with self._lock:
            if not self._is_over:
                self._given = step
                self._mailbox.put(_numbered(self._half.handle, step), bundle)

    def take(self, step: int, seconds: float) -> dict[str, Value] | None:
        until = monotonic() + seconds
        while (left := until - monotonic()) > 0:
            asked, wait = monotonic(), min(left, LONGEST_WAIT)
            try:
                bundle = self._ask(step, wait)
                if bundle is None:
                    return None
                self._mailbox.drop(_numbered(self._half.handle, step - 1))  # or it would not have come as far
                return unpack(bundle)
            except InputLost as lost:
                waited = monotonic() - asked
                if lost.reason is not Loss.MISSING or waited < wait / 2:
                    return None  # its holder is gone, or has left
            except (WireError, TooManyFetches, CancelledError, FutureTimeout):
                return None
        return None

    def leave(self) -> None:
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            fetch, given = self._fetch, self._given
        if fetch is not None:
            fetch.cancel()
        self._mailbox.drop(_numbered(self._half.handle, given - 1))
        for step in (given, given + 1):  # one of these the other waits for, or will ask for next
            self._mailbox.leave_word(_numbered(self._half.handle, step), _NOTHING)

    def _ask(self, step: int, wait: float) -> Bundle | None:
        partner = self._half.partner
        ref = msgspec.structs.replace(partner, handle=_numbered(partner.handle, step))
        with self._lock:
            if self._is_over:
                return None
            fetch = self._fetch = self._consumer.fetch(ref, wait + 1.0, int(1e3 * wait))
        try:
            return fetch.result(wait + 0.5)
        finally:
            with self._lock:
                self._fetch = None
            fetch.cancel()


def _numbered(handle: Handle, step: int) -> Handle:
    return Handle(f"{handle}.{step}")

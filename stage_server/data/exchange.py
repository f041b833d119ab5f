"""Swaps the halves of guided steps with the server that computes the other ones: ``stage_server.engine.base.Partner``.

Each lays its half into its own mailbox, under the handle that the gateway chose for it and the number of the step, and
pulls the other's as it would any input. It asks for that before it can be there, and the holder's answer waits for it:
so a half is on its way the moment it is laid down, sent by the thread that computed it, and nobody asks first.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from time import monotonic

import msgspec

from stage_server.data.consumer import STALL_SECONDS, Consumer, TooManyFetches
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


_DEADLINE = 2 * STALL_SECONDS
"""Later than silence ends it: so the consumer's thread, which looks for that anyway, is not woken for each request."""


@dataclass(frozen=True, slots=True)
class _Asked:
    fetch: Future[Bundle]
    at: float


class Exchange:
    def __init__(self, half: Half, mailbox: Mailbox, consumer: Consumer) -> None:
        self.leads = half.leads
        self._half = half
        self._mailbox = mailbox
        self._consumer = consumer
        self._lock = Lock()
        self._given = 0
        self._asked: dict[int, _Asked] = {}
        """By step. Two at most: the one that is due, and the one after it."""
        self._is_over = False

    def begin(self) -> None:
        """Ask for the first half: the way to its holder is found and connected while inputs are still fetched."""
        self._ask_ahead(1)

    def give(self, step: int, values: Mapping[str, Value]) -> None:
        bundle = pack(values)
        with self._lock:
            if self._is_over:
                return
            self._given = step
            self._mailbox.put(_numbered(self._half.handle, step), bundle)
        self._ask_ahead(step + 1)  # now: who is first waits anyway

    def take(self, step: int, seconds: float) -> dict[str, Value] | None:
        until = monotonic() + seconds
        while (left := until - monotonic()) > 0:
            try:
                asked = self._ask(step)
            except TooManyFetches:
                return None
            if asked is None:
                return None
            try:
                values = unpack(asked.fetch.result(left))
            except InputLost as lost:
                if lost.reason is not Loss.MISSING or monotonic() - asked.at < LONGEST_WAIT / 2:
                    return None  # its holder is gone, or keeps no more requests
            except (WireError, CancelledError, FutureTimeout):
                return None
            else:
                self._mailbox.drop(_numbered(self._half.handle, step - 1))  # or it would not have come as far
                return values
            finally:
                self._forget(step)
        return None

    def leave(self) -> None:
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            asked, given = list(self._asked.values()), self._given
        for each in asked:
            each.fetch.cancel()
        self._mailbox.drop(_numbered(self._half.handle, given - 1))
        self._mailbox.leave(_numbered(self._half.handle, given))  # the other one may not have it yet
        for step in (given + 1, given + 2):  # of which it asks for one next, and may have asked for the other
            self._mailbox.leave_word(_numbered(self._half.handle, step), _NOTHING)

    def _ask_ahead(self, step: int) -> None:
        with suppress(TooManyFetches):  # then it is asked for when it is due
            self._ask(step)

    def _ask(self, step: int) -> _Asked | None:
        partner = self._half.partner
        with self._lock:
            if self._is_over:
                return None
            asked = self._asked.get(step)
            if asked is None:
                ref = msgspec.structs.replace(partner, handle=_numbered(partner.handle, step))
                fetch = self._consumer.fetch(ref, _DEADLINE, int(1e3 * LONGEST_WAIT))
                asked = self._asked[step] = _Asked(fetch, monotonic())
            return asked

    def _forget(self, step: int) -> None:
        with self._lock:
            asked = self._asked.pop(step, None)
        if asked is not None:
            asked.fetch.cancel()


def _numbered(handle: Handle, step: int) -> Handle:
    return Handle(f"{handle}.{step}")

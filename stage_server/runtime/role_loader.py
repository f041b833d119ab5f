"""Threads that change the engine's roles, or read ahead for a change, beside the jobs that run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Thread
from time import monotonic

from stage_server.data.store import OutputStore, OutputTooLarge
from stage_server.engine.base import Engine, LoadError
from stage_server.runtime.baton import Baton, Ticket
from stage_server.runtime.events import (
    LoadRoles,
    ReadAhead,
    ReadAheadOver,
    RolesBegun,
    RolesBroke,
    RolesLoaded,
    RolesRested,
)
from wire.types import Role

log = logging.getLogger(__name__)


class Turns:
    """Turns at the device: each waits for the jobs that were here before it, and is timed."""

    def __init__(
        self, baton: Baton, arrival: Callable[[], int], post: Callable[[RolesBegun | RolesRested], None]
    ) -> None:
        """``arrival``: number of the latest job."""
        self._baton = baton
        self._post = post
        self._arrival = arrival
        self.waited = 0.0
        """Seconds, so far."""
        self.last = 0.0
        """Seconds that the latest turn took of the device."""

    @contextmanager
    def __call__(self) -> Iterator[None]:
        ticket, asked = Ticket(self._arrival()), monotonic()
        self._baton.line_up(ticket)
        try:
            self._baton.take(ticket)
            taken = monotonic()
            self.waited += taken - asked
            self._post(RolesBegun())
            try:
                yield
            finally:
                self.last = monotonic() - taken
                self._post(RolesRested())
        finally:
            self._baton.leave(ticket)


class RoleLoader:
    def __init__(
        self,
        engine: Engine,
        store: OutputStore,
        largest: Mapping[Role, int],
        turns: Callable[[], Turns],
        post: Callable[[RolesLoaded | RolesBroke | ReadAheadOver], None],
    ) -> None:
        self._engine = engine
        self._store = store
        self._largest = largest
        self._turns = turns
        self._post = post
        self._threads: list[Thread] = []

    @property
    def is_busy(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def begin(self, work: LoadRoles | ReadAhead) -> None:
        """Returns at once, and posts what came of it. One of each kind is under way at most."""
        match work:
            case LoadRoles():
                self._start("roles", lambda: self._post(self._exchange(work)))
            case ReadAhead(roles):
                self._start("read ahead", lambda: self._post(self._preload(roles)))

    def _start(self, name: str, target: Callable[[], None]) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(Thread(target=target, name=name, daemon=True))
        self._threads[-1].start()

    def _exchange(self, work: LoadRoles) -> RolesLoaded | RolesBroke:
        engine, turns, roles = self._engine, self._turns(), work.roles
        engine.forms.learn(work.forms)
        former, began = engine.roles, monotonic()
        from_host = roles - former <= engine.warm
        try:
            self._resize(roles)
            engine.set_roles(roles, turns)
        except (LoadError, OutputTooLarge) as error:
            self._resize(engine.roles)
            return RolesBroke(str(error), engine.roles)
        return RolesLoaded(roles, monotonic() - began - turns.waited, from_host, turns.last, engine.forms.seen())

    def _preload(self, roles: frozenset[Role]) -> ReadAheadOver:
        began = monotonic()
        try:
            self._engine.preload(roles, self._turns())
        except LoadError as error:
            return ReadAheadOver(str(error))
        named = ", ".join(role for role in Role if role in roles & self._engine.warm) or "nothing"
        log.info("%s waits in host memory, after %.2f s of reading ahead", named, monotonic() - began)
        return ReadAheadOver()

    def _resize(self, roles: frozenset[Role]) -> None:
        self._store.set_roles({role: self._largest[role] for role in Role if role in roles})

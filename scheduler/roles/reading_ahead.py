"""Roles that may come are read into host memory first, while the server still serves the roles that it has."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from scheduler.roles.problem import RoleSet
from wire.types import ServerId

PATIENCE = 1.5
"""Times the seconds of reading, after which a server is taken to have no room for them in host memory."""
AGAIN_SECONDS = 60.0
"""After which it may be asked again for what it did not read."""


@dataclass(frozen=True, slots=True)
class ServerState:
    id: ServerId
    cls: str
    roles: RoleSet
    """Held and warm now."""
    switching_to: RoleSet | None = None
    """Roles it has been told to hold and does not hold yet."""
    pinned: bool = False
    changed_at: float = -inf
    """When it last got other roles."""
    drain_seconds: float = 0.0
    """Until what it computes now is done."""
    in_host: RoleSet = frozenset()
    """Roles not held whose weights wait in its host memory."""
    reads_ahead: bool = False
    """It can be asked to bring roles there."""

    @property
    def coming(self) -> RoleSet:
        """What it holds, or will hold."""
        return self.roles if self.switching_to is None else self.switching_to

    @property
    def warm(self) -> RoleSet:
        """What it holds throughout."""
        return self.roles & self.coming


@dataclass(frozen=True, slots=True)
class RoleMove:
    server: ServerId
    roles: RoleSet
    """To hold from now on."""
    reason: str


@dataclass(frozen=True, slots=True)
class _Wish:
    roles: RoleSet
    at: float
    until: float
    """When it should be fulfilled at the latest."""


class ReadingAhead:
    """Who was asked to read what, and whether a move need wait for it."""

    def __init__(self) -> None:
        self._wishes: dict[ServerId, _Wish] = {}
        self._unsaid: list[RoleMove] = []

    def is_ready(self, state: ServerState, roles: RoleSet, seconds: float, now: float) -> bool:
        """Whether nothing would be gained by waiting any longer; ``seconds``: reading what is missing takes.

        Asks the server to read, where it can.
        """
        missing = roles - state.roles - state.in_host
        if not missing or not state.reads_ahead:
            return True
        wish = self._wishes.get(state.id)
        if wish is not None and missing <= wish.roles and now < wish.at + AGAIN_SECONDS:
            return now >= wish.until
        self._wishes[state.id] = _Wish(roles, now, now + PATIENCE * seconds)
        self._unsaid.append(RoleMove(state.id, roles - state.roles, "these roles may be moved there"))
        return False

    def may_read(self, state: ServerState, roles: RoleSet, now: float) -> bool:
        """Whether these roles can be had in host memory before the server gives others up, as far as is known."""
        missing = roles - state.roles - state.in_host
        if not missing:
            return True
        wish = self._wishes.get(state.id)
        has_failed = wish is not None and missing <= wish.roles and wish.until <= now < wish.at + AGAIN_SECONDS
        return state.reads_ahead and not has_failed

    def forget(self, server: ServerId) -> None:
        """It moves."""
        self._wishes.pop(server, None)

    def take(self) -> tuple[RoleMove, ...]:
        """What has not been said yet."""
        said, self._unsaid = tuple(self._unsaid), []
        return said

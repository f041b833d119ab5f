"""What goes out to the gateway, and what waits until one is there to hear it."""

from __future__ import annotations

from collections.abc import Iterable

from stage_server.runtime.events import Effect, Send
from stage_server.runtime.link import Link
from wire.to_gateway import (
    HandedOver,
    Hello,
    RolesFailed,
    RolesReady,
    StageCancelled,
    StageDone,
    StageFailed,
    ToGateway,
)
from wire.types import Epoch, Role

LastWord = StageDone | StageFailed | StageCancelled | HandedOver | RolesReady | RolesFailed


class Post:
    """Messages go only to a gateway that knows us. Last words wait for it, all others would be stale by then."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._unsent: dict[Epoch, LastWord] = {}
        """Last words that no gateway was there to hear."""
        self.told_roles: tuple[Role, ...] = ()
        """Roles that the gateway believes to be here."""

    def passed(self, effects: Iterable[Effect]) -> list[Effect]:
        """What of them can be done now."""
        return [effect for effect in effects if not isinstance(effect, Send) or self._is_deliverable(effect.message)]

    def caught_up(self) -> list[Effect]:
        """What waited, now that a gateway is here."""
        words = [Send(word) for word in self._unsent.values()]
        self._unsent.clear()
        return [*words]

    def drop(self) -> None:
        """Nobody will want to hear what waits."""
        self._unsent.clear()

    @property
    def is_empty(self) -> bool:
        return not self._unsent

    def finished(self) -> tuple[Epoch, ...]:
        """Attempts whose last words wait."""
        return tuple(epoch for epoch, word in self._unsent.items() if not isinstance(word, RolesReady | RolesFailed))

    def _is_deliverable(self, message: ToGateway) -> bool:
        if isinstance(message, LastWord) and message.epoch.gateway != self._link.gateway:
            return isinstance(message, StageCancelled) and self._link.welcomed
        if isinstance(message, LastWord) and not self._link.welcomed:
            self._unsent[message.epoch] = message
        if isinstance(message, RolesReady) and self._link.welcomed:
            self.told_roles = message.roles
        return self._link.welcomed or isinstance(message, Hello)

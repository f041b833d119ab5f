"""Which roles this server holds, and the change of them: drain, load, report. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from stage_server.runtime.events import Effect, LoadRoles, ReadAhead, RolesLoaded, Send
from wire.to_gateway import RolesFailed, RolesReady
from wire.to_stage import AssignRoles
from wire.types import Epoch, Role


@cache  # there are eight sets, and enums are slow to go through
def in_order(roles: frozenset[Role]) -> tuple[Role, ...]:
    return tuple(role for role in Role if role in roles)


@dataclass(slots=True)
class RoleSet:
    """The roles held, and at most one change of them under way and one waiting behind it."""

    held: frozenset[Role]
    capable: frozenset[Role]
    pinned: bool
    may_be_empty: bool = False
    """Its process serves other models too, so it may hold nothing of this one."""
    draining: AssignRoles | None = None
    """Accepted; waits for the jobs of the roles that go."""
    loading: AssignRoles | None = None
    """Weights are on their way, beside the work of the roles that stay."""
    reading: bool = False
    """Ahead of an assignment."""
    to_read: frozenset[Role] = frozenset()
    """After that."""

    def accepting(self) -> frozenset[Role]:
        """Roles for which new work is taken."""
        kept = self.held
        for change in (self.loading, self.draining):
            if change is not None:
                kept &= frozenset(change.roles)
        return kept

    def refusal(self, role: Role) -> str:
        return f"the server gives the role {role} up" if role in self.held else f"the server does not hold {role}"

    def assign(self, message: AssignRoles) -> list[Effect]:
        """The newest assignment replaces one that still waits."""
        wanted = frozenset(message.roles)
        if fault := self._fault(wanted):
            return [self._failed(message.epoch, fault)]
        effects: list[Effect] = []
        if self.draining is not None:
            effects.append(self._failed(self.draining.epoch, "replaced by a newer assignment"))
        self.draining = message
        return effects

    def advance(self, busy: Mapping[Role, int]) -> list[Effect]:
        """Begin to load once no job of a role that goes is left. ``busy``: attempts under way per role."""
        if self.draining is None or self.loading is not None:
            return []
        wanted = frozenset(self.draining.roles)
        if any(busy.get(role, 0) for role in self.held - wanted):
            return []
        change, self.draining = self.draining, None
        if wanted == self.held:
            return [Send(RolesReady(epoch=change.epoch, roles=in_order(wanted), load_seconds=0.0))]
        self.loading = change
        return [LoadRoles(wanted, change.forms)]

    def loaded(self, done: RolesLoaded) -> list[Effect]:
        change, self.loading = self.loading, None
        self.held = done.roles
        if change is None:
            return []
        ready = RolesReady(
            epoch=change.epoch,
            roles=in_order(done.roles),
            load_seconds=done.seconds,
            from_host=done.from_host,
            stopped_seconds=done.stopped,
            forms=dict(done.forms),
        )
        return [Send(ready)]

    def broke(self, message: str, roles: frozenset[Role]) -> list[Effect]:
        change, self.loading = self.loading, None
        self.held = roles
        return [] if change is None else [self._failed(change.epoch, message)]

    def preload(self, roles: frozenset[Role]) -> list[Effect]:
        """The newest wish replaces one that still waits; what cannot be wished for is left out."""
        self.to_read = frozenset() if self.pinned else roles & self.capable
        return self._read_on()

    def read_ahead(self) -> list[Effect]:
        """The one under way is over."""
        self.reading = False
        return self._read_on()

    def _read_on(self) -> list[Effect]:
        if self.reading or not self.to_read:
            return []
        self.reading, roles, self.to_read = True, self.to_read, frozenset()
        return [ReadAhead(roles)]

    def abandon(self) -> None:
        """The gateway that assigned is no more: what waits is forgotten, what loads ends unreported by epoch."""
        self.draining = None

    def _fault(self, wanted: frozenset[Role]) -> str:
        if not wanted and not self.may_be_empty:
            return "no role at all was assigned; drain or shut the server down instead"
        if self.pinned and wanted != self.held:
            return f"the server is pinned to {', '.join(in_order(self.held))}"
        if strange := wanted - self.capable:
            return f"the server cannot take {', '.join(in_order(strange))}"
        return ""

    def _failed(self, epoch: Epoch, message: str) -> Send:
        return Send(RolesFailed(epoch=epoch, roles=in_order(self.held), message=message))

"""A simulated server's roles: drain, load, report (``stage_server.runtime.roles``)."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from scheduler.actions import AssignRoles
from wire.types import Role


@dataclass(slots=True)
class Roles:
    """Held, and at most one change under way and one waiting behind it."""

    held: frozenset[Role]
    draining: AssignRoles | None = None
    loading: AssignRoles | None = None

    def accepting(self) -> frozenset[Role]:
        kept = self.held
        for change in (self.loading, self.draining):
            if change is not None:
                kept &= change.roles
        return kept

    def assign(self, order: AssignRoles) -> AssignRoles | None:
        """The order that this one replaces."""
        replaced, self.draining = self.draining, order
        return replaced

    def next_load(self, busy: Set[Role]) -> AssignRoles | None:
        """What can be loaded now that no job of a role that goes is left."""
        if self.draining is None or self.loading is not None:
            return None
        if busy & (self.held - self.draining.roles):
            return None
        self.loading, self.draining = self.draining, None
        return self.loading

    def loaded(self, *, well: bool) -> AssignRoles:
        """The load is over; rolled back unless it went ``well``."""
        change, self.loading = self.loading, None
        if change is None:
            raise AssertionError("nothing was being loaded")
        if well:
            self.held = change.roles
        return change

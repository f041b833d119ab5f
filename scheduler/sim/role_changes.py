"""A simulated server's changes of roles: weights are read, and loaded beside the work; what the gateway hears of it."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Protocol

from scheduler import events as ev
from scheduler.actions import AssignRoles
from scheduler.sim.device import Device, Owner
from scheduler.sim.host import HostMemory
from scheduler.sim.roles import Roles
from scheduler.sim.setup import ServerSetup
from scheduler.sim.tasks import Load
from scheduler.sim.world import World
from wire.types import Role, ServerId

HEARTBEAT_SECONDS = 1.0
"""Until the gateway hears of roles in host memory."""


class Holder(Owner, Protocol):
    """What has to be known of the server."""

    id: ServerId
    setup: ServerSetup
    device: Device


class RoleChanges:
    def __init__(self, holder: Holder, world: World):
        self._holder = holder
        self._setup = holder.setup
        self._world = world
        self._host = HostMemory(holder.setup, world.clock)
        self._host.keep(holder.setup.roles)
        self._warm: frozenset[Role] = frozenset()
        """As the gateway was told."""
        self._roles = Roles(holder.setup.roles)

    @property
    def held(self) -> frozenset[Role]:
        return self._roles.held

    @property
    def is_loading(self) -> bool:
        return self._roles.loading is not None

    def accepting(self) -> frozenset[Role]:
        return self._roles.accepting()

    def introduced(self) -> frozenset[Role]:
        """Roles in host memory, which a ``Hello`` tells."""
        self._warm = self._warm_now()
        return self._warm

    def assign(self, order: AssignRoles, *, is_leaving: bool) -> None:
        is_refused = is_leaving or self._setup.pinned or not (order.roles or self._setup.device)
        refused = order if is_refused else self._roles.assign(order)
        if refused is not None:
            why = (
                "the server is leaving or pinned, or no role was assigned" if is_refused else "replaced by a newer one"
            )
            self._world.send(ev.RolesFailed(self._holder.id, refused.epoch, self.held, why))

    def advance(self, busy: Set[Role]) -> None:
        """Load what is due, now that jobs of ``busy`` roles are here.

        It goes on beside the work of the roles that stay: what is not in host memory is read, all is copied, and
        swapped between two jobs.
        """
        order = self._roles.next_load(busy)
        if order is None:
            return
        coming = order.roles - self.held
        from_host = self._host.holds(coming)
        seconds = self._host.read(coming) + sum(map(self._setup.copy_seconds, coming))
        swap = self._setup.swap_seconds
        load = Load(
            steps=1,
            step_seconds=swap,
            order_given=order,
            seconds=seconds + swap,
            from_host=from_host,
            owner=self._holder,
        )
        self._holder.later(seconds, self._holder.device.line_up, load)

    def loaded(self, load: Load) -> None:
        """The device has taken the swap."""
        well = self._world.fits(self._setup, load.order_given.roles) and not self._world.mishap("load_fails")
        order = self._roles.loaded(well=well)
        if well:
            self._world.send(ev.RolesReady(self._holder.id, order.epoch, self.held, load.seconds, load.from_host))
        else:
            self._world.send(ev.RolesFailed(self._holder.id, order.epoch, self.held, "the load failed"))
        self._holder.later(HEARTBEAT_SECONDS, self._tell_warm)

    def read_ahead(self, roles: Iterable[Role]) -> None:
        if not self._setup.pinned:
            seconds = self._host.read(frozenset(roles) - self.held)
            self._holder.later(seconds + HEARTBEAT_SECONDS, self._tell_warm)

    def _tell_warm(self) -> None:
        """As heartbeats do."""
        warm = self._warm_now()
        if warm != self._warm:
            self._warm = warm
            self._world.send(ev.RolesWarm(self._holder.id, warm))

    def _warm_now(self) -> frozenset[Role]:
        return frozenset(role for role in Role if role not in self.held and self._host.holds((role,)))

"""What a scenario is made of. Times are seconds of virtual time, sizes bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf

from scheduler.cost.profile import Profile
from scheduler.cost.work import Target
from scheduler.scaling.pools import Pool
from scheduler.sim.workload import Kind, Workload
from scheduler.spec import RoleCost
from wire.types import REQUIRED, ModelKey, Role

HOST_BANDWIDTH = 20e9
"""Bytes per second over PCIe 4.0, which gives 22 to 26 GB/s from pinned memory."""
ALL_ROLES = frozenset(REQUIRED)


@dataclass(frozen=True, slots=True)
class Network:
    """One network for all: every transfer has the whole bandwidth (stages hand on megabytes, not gigabytes)."""

    control: float = 0.0003
    """Of one control message."""
    latency: float = 0.001
    """Of one transfer, beside its bytes."""
    bandwidth: float = 1.25e9
    jitter: float = 0.2
    """A transfer takes up to this share longer."""
    detection: float = 0.05
    """From a server's death until the gateway sees its socket closed."""
    liveness: float = 3.0
    """Silence after which a frozen server counts as lost."""
    fetch_timeout: float = 2.0
    """After which a transfer from a silent holder is given up."""


@dataclass(frozen=True, slots=True)
class Chances:
    """Of mishaps without a date, each per occasion."""

    job_fails: float = 0.0
    input_lost: float = 0.0
    result_lost: float = 0.0
    load_fails: float = 0.0


@dataclass(frozen=True, slots=True)
class ServerSetup:
    name: str
    profile: Profile
    """The truth about its costs, memory and load times."""
    roles: frozenset[Role] = ALL_ROLES
    joins_at: float = 0.0
    slowness: float = 1.0
    """Times slower than its profile."""
    memory_bytes: int | None = None
    """None: the profile's."""
    store_bytes: int | None = None
    """None: without limit."""
    pinned: bool = False
    host_bytes: int | None = None
    """Of host memory, for weights; None: room for every role's."""
    host_bandwidth: float = HOST_BANDWIDTH
    """Bytes per second from there to the device."""
    swap_seconds: float = 0.05
    """In which the device stops, once all weights are there."""
    device: str = ""
    """Name of the machine that it has together with servers of other models; empty: one of its own."""
    software: str = "simulated"
    shares_guidance: bool = False
    """It computes half of others' guided steps while it has nothing to do, and they half of its own."""
    together: int = 1
    """Jobs of one role that may compute at once."""
    pool: str = ""
    """That it was started for."""
    report_seconds: float = 0.5
    """Least time between two reports of a job's progress; more makes simulations quicker."""

    def __post_init__(self) -> None:
        if self.together < 1:
            raise ValueError(f"server {self.name}: at least one job computes at a time, not {self.together}")

    @property
    def model(self) -> str:
        return self.profile.model.name

    @property
    def target(self) -> Target:
        return Target.of(self.profile.model.name, self.profile.device_class, self.profile.precision)

    @property
    def memory(self) -> int:
        return self.profile.memory_bytes if self.memory_bytes is None else self.memory_bytes

    def capable(self) -> dict[Role, RoleCost]:
        return {
            role: RoleCost(
                part.weights_bytes, part.activation_bytes, part.load_seconds, self.together, self._warm_seconds(role)
            )
            for role, part in self.profile.roles.items()
        }

    def copy_seconds(self, role: Role) -> float:
        """From host memory to the device; what is left of the profile's ``load_seconds`` goes into reading files."""
        part = self.profile.roles[role]
        return min(part.load_seconds, part.weights_bytes / self.host_bandwidth)

    def _warm_seconds(self, role: Role) -> float:
        return self.copy_seconds(role) + self.swap_seconds

    def read_seconds(self, role: Role) -> float:
        return self.profile.roles[role].load_seconds - self.copy_seconds(role)

    def fits(self, roles: frozenset[Role]) -> bool:
        return fit([(self, roles)])

    def shares(self, other: ServerSetup) -> bool:
        """They are on one device."""
        return bool(self.device) and self.device == other.device


def fit(held: Sequence[tuple[ServerSetup, frozenset[Role]]]) -> bool:
    """Whether one device has room for what these servers hold; one job computes at a time."""
    parts = [server.profile.roles[role] for server, roles in held for role in roles]
    needed = sum(part.weights_bytes for part in parts) + max((part.activation_bytes for part in parts), default=0)
    return needed <= min(server.memory for server, _ in held)


@dataclass(frozen=True, slots=True)
class PoolSetup:
    """Servers that are started and stopped by what is asked for, and the truth about that."""

    pool: Pool
    server: ServerSetup
    """Each of them, but for the name."""
    begin: int | None = None
    """Here from the start; None: the pool's least."""
    cold_start: tuple[float, float] = (60.0, 180.0)
    """A start takes something between these."""
    losses: tuple[float, ...] = ()
    """When a machine is taken away, of whichever server has been here longest."""
    notice: float = 120.0
    """How long before that is announced."""

    def __post_init__(self) -> None:
        low, high = self.cold_start
        if not 0 < low <= high < inf:
            raise ValueError(f"pool {self.pool.name}: a start takes from above 0 s to no less, not {low} to {high} s")
        if self.notice < 0 or min(self.losses, default=0.0) < 0:
            raise ValueError(f"pool {self.pool.name}: losses, and their notice, are at 0 s or later")
        if self.begin is not None and not self.pool.min <= self.begin <= self.pool.max:
            raise ValueError(f"pool {self.pool.name}: it begins with from min to max servers, not {self.begin}")

    def member(self, number: int) -> ServerSetup:
        return replace(self.server, name=f"{self.pool.name}-{number}", pool=self.pool.name)


@dataclass(frozen=True, slots=True)
class Fault:
    at: float
    server: str
    """Name."""


@dataclass(frozen=True, slots=True)
class Kill(Fault):
    restart_after: float | None = None
    """None: it stays away. It comes back empty, with the roles of its setup."""


@dataclass(frozen=True, slots=True)
class Freeze(Fault):
    seconds: float


@dataclass(frozen=True, slots=True)
class SlowDown(Fault):
    factor: float
    """Relative to its profile; 1 makes it well again."""


@dataclass(frozen=True, slots=True)
class Leave(Fault):
    """It is told to stop: finishes its work, and goes."""


EVERYBODY = "everybody"
GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Unreachable(Fault):
    """What it holds cannot be fetched; whatever it does itself is not disturbed."""

    fetchers: frozenset[str]
    """Names of servers, ``GATEWAY``, ``EVERYBODY``."""
    until: float = inf


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    servers: tuple[ServerSetup, ...]
    workload: Workload
    faults: tuple[Fault, ...] = ()
    network: Network = field(default_factory=Network)
    chances: Chances = field(default_factory=Chances)
    noise: float = 0.007
    """Standard deviation of the logarithm of a job's true cost."""
    publish_seconds: float = 0.001
    solver_seconds: float = 0.03
    """Until a role plan is back."""
    pools: tuple[PoolSetup, ...] = ()

    def __post_init__(self) -> None:
        if not self.setups:
            raise ValueError("a scenario needs at least one server, or a pool of them")
        self._check_kinds()
        shared = [(server.device, server.model) for server in self.servers if server.device]
        if len(set(shared)) < len(shared):
            raise ValueError("two servers of one model share a device")
        names = [server.name for server in self.servers]
        if len(set(names)) < len(names):
            raise ValueError("two servers of the scenario have the same name")
        cut_off = {name for fault in self.faults if isinstance(fault, Unreachable) for name in fault.fetchers}
        strangers = ({fault.server for fault in self.faults} | cut_off - {GATEWAY, EVERYBODY}) - set(names)
        if strangers:
            raise ValueError(f"faults of servers that the scenario does not have: {', '.join(sorted(strangers))}")
        for server in self.servers:
            held = [(other, other.roles) for other in self.servers if other is server or other.shares(server)]
            if not fit(held):
                raise ValueError(f"{' + '.join(sorted(server.roles))} do not fit the memory of server {server.name}")

    def _check_kinds(self) -> None:
        models = {server.model for server in self.setups}
        if stray := {kind.model for kind in self.kinds()} - models - ({""} if len(models) == 1 else set()):
            named = ", ".join(sorted(stray)) or "no model"
            raise ValueError(f"a kind of requests names {named}, where the servers have {', '.join(sorted(models))}")
        for role, what in {Role.UPSCALER: "upscaled", Role.ENHANCER: "enhanced"}.items():
            asked = any(getattr(kind, what) for kind in self.kinds())
            if asked and not any(role in server.profile.roles for server in self.setups):
                raise ValueError(f"a kind of requests is {what}, and no server's profile has a section [{role}]")
        if unknown := {kind.step_cache for kind in self.kinds() if kind.step_cache} - self._step_caches():
            known = ", ".join(sorted(self._step_caches())) or "none"
            raise ValueError(
                f"kinds of requests name the step cache {min(unknown)}; the servers' profiles know {known}"
            )

    @property
    def setups(self) -> tuple[ServerSetup, ...]:
        """All sorts of servers that there may be."""
        return self.servers + tuple(pool.server for pool in self.pools)

    def _step_caches(self) -> set[str]:
        return {level for server in self.setups for level in server.profile.roles[Role.DIT].step_caches}

    @property
    def model(self) -> ModelKey:
        return ModelKey(self.setups[0].model)

    def kinds(self) -> list[Kind]:
        """Of requests that may come."""
        return [kind for phase in self.workload.phases for _, kind in phase.mix] + [
            arrival.kind for arrival in self.workload.trace
        ]

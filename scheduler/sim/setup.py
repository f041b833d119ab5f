"""What a scenario is made of. Times are seconds of virtual time, sizes bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from scheduler.cost.profile import Profile
from scheduler.cost.work import Target
from scheduler.sim.workload import Workload
from scheduler.spec import RoleCost
from wire.types import ModelKey, Role

ALL_ROLES = frozenset(Role)


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

    @property
    def target(self) -> Target:
        return Target.of(self.profile.model.name, self.profile.device_class, self.profile.precision)

    @property
    def memory(self) -> int:
        return self.profile.memory_bytes if self.memory_bytes is None else self.memory_bytes

    def capable(self) -> dict[Role, RoleCost]:
        return {
            role: RoleCost(part.weights_bytes, part.activation_bytes, part.load_seconds)
            for role, part in self.profile.roles.items()
        }

    def fits(self, roles: frozenset[Role]) -> bool:
        parts = [self.profile.roles[role] for role in roles]
        return sum(p.weights_bytes for p in parts) + max((p.activation_bytes for p in parts), default=0) <= self.memory


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

    def __post_init__(self) -> None:
        if not self.servers:
            raise ValueError("a scenario needs at least one server")
        models = {server.profile.model.name for server in self.servers}
        if len(models) > 1:
            raise ValueError(f"all servers of a scenario serve one model, not {', '.join(sorted(models))}")
        names = [server.name for server in self.servers]
        if len(set(names)) < len(names):
            raise ValueError("two servers of the scenario have the same name")
        cut_off = {name for fault in self.faults if isinstance(fault, Unreachable) for name in fault.fetchers}
        strangers = ({fault.server for fault in self.faults} | cut_off - {GATEWAY, EVERYBODY}) - set(names)
        if strangers:
            raise ValueError(f"faults of servers that the scenario does not have: {', '.join(sorted(strangers))}")
        for server in self.servers:
            if not server.fits(server.roles):
                raise ValueError(f"{' + '.join(sorted(server.roles))} do not fit the memory of server {server.name}")

    @property
    def model(self) -> ModelKey:
        return ModelKey(self.servers[0].profile.model.name)

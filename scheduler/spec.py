"""What the scheduler is told about requests, jobs and servers. Immutable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.cost.work import Target, Work
from wire.types import Handle, JobId, ModelKey, RequestId, Role, ServerId

IMAGE_PORT = "image"
"""Port of the output that goes to the client."""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One stage job of a request's graph."""

    id: JobId
    role: Role
    work: Work
    needs: tuple[JobId, ...] = ()
    """Jobs of the same request whose outputs at port ``role`` this job reads."""
    optional: bool = False
    """A preview: outside the exactly-once promise, dropped at the first obstacle."""
    previews: tuple[JobSpec, ...] = ()
    """Of a dit job: the optional jobs that decode what it shows on its way, one per intermediate picture asked for."""

    @property
    def is_final(self) -> bool:
        """Its picture goes to the client."""
        return self.role is Role.DECODER and not self.optional


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """A request as a graph of stage jobs, in an order in which every job follows those it needs."""

    id: RequestId
    model: ModelKey
    jobs: tuple[JobSpec, ...]
    deadline: float
    """Absolute, on the clock that ``Scheduler.handle`` is given, seconds."""
    tenant: str = ""
    priority: int = 0
    """Higher goes first among the requests of one tenant."""
    seeded: bool = True
    """The caller named a seed: its jobs are not batched with others."""

    def __post_init__(self) -> None:
        seen: set[JobId] = set()
        for job in self.jobs:
            unknown = [need for need in job.needs if need not in seen]
            if unknown:
                raise ValueError(f"job {job.id} of request {self.id} needs {unknown}, which do not come before it")
            if job.id in seen:
                raise ValueError(f"request {self.id} has two jobs named {job.id}")
            seen.add(job.id)
        if not any(job.is_final for job in self.jobs):
            raise ValueError(f"request {self.id} has no decoder job, so nothing could be delivered")


@dataclass(frozen=True, slots=True)
class RoleCost:
    """What holding a role takes on one server."""

    weight_bytes: int = 0
    activation_bytes: int = 0
    load_seconds: float = 0.0


NO_TARGET = Target("", "", "")


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """One life of one stage server, as it introduced itself."""

    id: ServerId
    name: str
    model: ModelKey
    device_class: str
    roles: frozenset[Role]
    capable: Mapping[Role, RoleCost] = field(default_factory=dict)
    memory_bytes: int = 0
    pinned: bool = False
    target: Target = NO_TARGET
    """Which cost model it shares."""

    def __post_init__(self) -> None:
        stray = self.roles - set(self.capable)
        if stray:
            raise ValueError(f"server {self.id} holds {sorted(stray)}, of which it says it is not capable")


@dataclass(frozen=True, slots=True)
class Output:
    """A retained output of a finished job."""

    port: str
    handle: Handle
    nbytes: int


@dataclass(frozen=True, slots=True)
class Input:
    """Where an output lies that a job reads."""

    handle: Handle
    holder: ServerId
    nbytes: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that one attempt spent on its server."""

    wait: float = 0.0
    fetch: float = 0.0
    compute: float = 0.0
    publish: float = 0.0
    paused: float = 0.0
    steps: int = 0
    batch: int = 1

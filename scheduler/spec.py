"""What the scheduler is told about requests, jobs and servers. Immutable."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import field

from scheduler.cost.work import Target, Work
from wire.record import record
from wire.types import STAGES, Handle, JobId, ModelKey, RequestId, Role, ServerId

IMAGE_PORT = "image"
"""Port of the output that goes to the client."""


@record(frozen=True, slots=True)
class Output:
    """A retained output of a finished job."""

    port: str
    handle: Handle
    nbytes: int


@record(frozen=True, slots=True)
class Made:
    """What an equal job of another request has left, under handles that nobody else knows it by."""

    holder: ServerId
    outputs: tuple[Output, ...]


@record(frozen=True, slots=True)
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
    workflow: str = ""
    """Jobs of different workflows never compute together."""
    adapters: frozenset[str] = frozenset()
    """What its server's weights are adapted with: only a server that has all of them can run it …"""
    scales: tuple[float, ...] = ()
    """… and how strongly each, by name; jobs that differ in either never compute together."""
    made: Made | None = None
    """It need not run while this is there."""
    is_passed_on: bool = False
    """It makes a picture that a later stage reads; the client gets what becomes of it."""
    is_steered: bool = False
    """By pictures: no other server computes half of its guided steps."""

    def lacks(self, adapters: Collection[str]) -> bool:
        """Whether it needs others than these."""
        return bool(self.adapters) and not self.adapters.issubset(adapters)

    @property
    def is_final(self) -> bool:
        """Its picture goes to the client."""
        return STAGES[self.role].makes_pictures and not (self.optional or self.is_passed_on)

    def is_like(self, other: JobSpec) -> bool:
        """Whether the two may compute together: every step of one costs what a step of the other does."""
        is_adapted_alike = self.adapters == other.adapters and self.scales == other.scales
        return self.workflow == other.workflow and is_adapted_alike and self.work.is_like(other.work)


@record(frozen=True, slots=True)
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
    exact: bool = True
    """The pictures must be those of a run alone, byte for byte: its jobs are not computed together with others."""

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
            raise ValueError(f"request {self.id} has no job whose picture goes to the client")


@record(frozen=True, slots=True)
class RoleCost:
    """What holding a role takes on one server."""

    weight_bytes: int = 0
    activation_bytes: int = 0
    load_seconds: float = 0.0
    """From files."""
    together: int = 1
    """Attempts that may compute at once where each may share the device; 1: each has it alone."""
    warm_seconds: float = 0.0
    """To load it from host memory; 0: not known."""
    common_bytes: Mapping[str, int] = field(default_factory=dict)
    """Of ``weight_bytes``, what roles with the same key hold once together on one device."""

    def __post_init__(self) -> None:
        if self.together < 1:
            raise ValueError(f"at least one attempt computes at a time, not {self.together}")


NO_TARGET = Target("", "", "")


@record(frozen=True, slots=True)
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
    adapters: Mapping[str, frozenset[Role]] = field(default_factory=dict)
    """Those that it has, and the roles whose jobs need it for them."""
    warm: frozenset[Role] = frozenset()
    """Roles that it does not hold and whose weights wait in its host memory."""
    reads_ahead: bool = False
    """It can be asked to bring roles there."""
    software: str = ""
    """What computes, with versions; empty: it cannot hand jobs over."""
    device: str = ""
    """Servers that name the same one are one process, each for another of its models; empty: it shares with nobody."""
    pool: str = ""
    """That it was started for; empty: for none."""
    shares_guidance: bool = False
    """It can compute half of another's guided steps, and have half of its own computed."""
    model_name: str = ""
    """What clients call the model; empty: as the key, without its digest."""

    def computes_as(self, other: ServerSpec) -> bool:
        """They may go on with each other's denoising, and the picture is the same to the bit."""
        return bool(self.software) and (self.device_class, self.software) == (other.device_class, other.software)

    def __post_init__(self) -> None:
        stray = self.roles - set(self.capable)
        if stray:
            raise ValueError(f"server {self.id} holds {sorted(stray)}, of which it says it is not capable")


@record(frozen=True, slots=True)
class Input:
    """Where an output lies that a job reads."""

    handle: Handle
    holder: ServerId
    nbytes: int


@record(frozen=True, slots=True)
class Timings:
    """Seconds that one attempt spent on its server."""

    wait: float = 0.0
    fetch: float = 0.0
    compute: float = 0.0
    publish: float = 0.0
    paused: float = 0.0
    steps: int = 0
    batch: float = 1.0
    """Attempts that computed together, in the mean over the job."""

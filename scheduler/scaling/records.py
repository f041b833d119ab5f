"""What the autoscaler keeps: per pool the servers that are here, on their way, or going; per model what is asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from scheduler.cost.work import Work
from scheduler.roles.problem import ServerClass
from scheduler.scaling.forecast import Forecast
from scheduler.scaling.pools import Pool
from scheduler.scaling.starts import ColdStarts
from scheduler.state import Server
from wire.types import REQUIRED, STAGES, ModelKey, Role, ServerId

SLACKS = 64
"""Latest requests by which it is judged how long may be waited."""
TIGHT = 0.2
"""Share of them that may have had less time."""
LATEST = 1 / 64
"""Weight of the latest request in a model's mean work."""
FORGOTTEN = 1e-3
"""Share of a model's work below which an optional stage is not one any more."""


@dataclass(slots=True)
class PoolState:
    pool: Pool
    starts: ColdStarts = field(init=False)
    members: dict[ServerId, Server] = field(default_factory=dict)
    """Servers that introduced themselves as the pool's."""
    ordered: list[float] = field(default_factory=list)
    """When each server that is on its way was asked for, oldest first."""
    took: dict[ServerId, float] = field(default_factory=dict)
    """Seconds from the order to the introduction, of members that were asked for."""
    surplus: list[ServerId] = field(default_factory=list)
    """Members that are to go, in the order in which they were chosen."""
    needed: deque[tuple[float, int]] = field(default_factory=deque)
    """When how many servers were enough, lately."""
    cls: ServerClass | None = None
    """What its servers can do, as the latest said."""
    why: str = "nothing was decided yet"

    def __post_init__(self) -> None:
        self.starts = ColdStarts(self.pool.cold_start_seconds)

    def enough(self, count: int, present: int, seconds: float, now: float) -> int:
        """``count`` are enough now, of the ``present`` ones: the most that were needed within the last ``seconds``."""
        if not self.needed:
            self.needed.append((now, present))
        self.needed.append((now, count))
        while self.needed[0][0] < now - seconds:
            self.needed.popleft()
        return max(most for _, most in self.needed)

    def staying(self, doomed: Container[ServerId]) -> list[Server]:
        """Members that count: not on their way out, whoever wants it."""
        return [
            server
            for name, server in self.members.items()
            if not server.is_leaving and name not in self.surplus and name not in doomed
        ]


@dataclass(slots=True)
class ModelState:
    """Of one name: two revisions, while one replaces the other, are one."""

    key: ModelKey
    """Of the latest request."""
    forecast: Forecast
    asked_at: float
    """When that came."""
    work: dict[Role, float]
    """Of a request, the mean of the latest."""
    longest: float = 0.0
    """Seconds of a usual request's longest job."""
    works: dict[Role, Work] = field(default_factory=dict)
    """The latest job of each role: devices are compared by it."""
    slacks: deque[float] = field(default_factory=lambda: deque(maxlen=SLACKS))
    """Seconds that the latest requests had to spare."""

    def arrived(self, key: ModelKey, jobs: Sequence[tuple[Work, float]], seconds_left: float, now: float) -> None:
        """A request of these jobs and what they take, to be done within ``seconds_left``."""
        total = dict.fromkeys((*REQUIRED, *self.work), 0.0)
        chain: dict[Role, float] = {}
        for work, seconds in jobs:
            total[work.role] = total.get(work.role, 0.0) + seconds
            chain[work.role] = max(chain.get(work.role, 0.0), seconds)
            self.works[work.role] = work
        self.key, self.asked_at = key, now
        self.forecast.arrived(sum(total.values()), now)
        self.slacks.append(max(0.0, seconds_left - sum(chain.values())))
        self.longest += LATEST * (max(chain.values()) - self.longest) if self.longest else max(chain.values())
        for role, seconds in total.items():
            self.work[role] = self.work.get(role, seconds) + LATEST * (seconds - self.work.get(role, seconds))
        for role in [role for role in self.work if STAGES[role].is_optional]:
            if self.work[role] < FORGOTTEN * sum(self.work.values()):  # it needs no holder any more
                del self.work[role]

    def slack(self) -> float:
        """What most of them had at least; 0 before the first."""
        ordered = sorted(self.slacks)
        return ordered[int(TIGHT * len(ordered))] if ordered else 0.0


@dataclass(frozen=True, slots=True)
class PoolOrder:
    """What whoever starts servers is to do about one pool."""

    pool: Pool
    wanted: int
    """Servers that are to be here or on their way; those in ``drain`` and those that leave do not count."""
    ready: int
    """Of these, here."""
    drain: tuple[ServerId, ...]
    """Servers that are to finish what they have, and go: too many, or about to lose their machine."""
    lost: tuple[ServerId, ...]
    """The latter of them."""
    cold_start_seconds: float
    """As measured lately, or assumed."""
    cold_starts: Mapping[ServerId, float]
    """Seconds that members took which were asked for."""
    why: str

    @property
    def starting(self) -> int:
        return self.wanted - self.ready

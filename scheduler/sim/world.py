"""What a simulated server can't know by itself: costs, the network, chance. ``scheduler.sim.engine`` answers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from scheduler import events as ev
from scheduler.actions import Run
from scheduler.cost.work import Work
from scheduler.sim.clock import Clock
from scheduler.sim.setup import ServerSetup
from scheduler.spec import Input
from wire.types import Epoch, Handle, JobId, Role, ServerId


@dataclass(frozen=True, slots=True)
class Loss:
    """Of an input."""

    seconds: float
    """Until the reader knows."""
    unreached: bool
    """Its holder gave no answer."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one job on one server."""

    work: Work
    seconds: float
    """On the device, alone."""
    marginal: float
    """What a further job of its kind adds where they compute together, in jobs."""
    halved: float = 0.0
    """Where another server computes half of each guided step."""


class World(Protocol):
    """Everything outside one server."""

    clock: Clock
    publish_seconds: float

    def send(self, event: ev.Event) -> None:
        """To the gateway."""

    def help(self, leader: tuple[ServerId, Epoch], *, comes: bool) -> None:
        """Half of its guided steps is computed elsewhere from now on, or no more."""

    def cost(self, job: Run, setup: ServerSetup) -> Cost:
        """The truth."""

    def previews(self, job: JobId) -> int:
        """Intermediate pictures that are asked of a dit job."""

    def transfer_seconds(self, nbytes: int) -> float: ...

    def loss(self, reader: str, source: Input) -> Loss | None:
        """None if the server named ``reader`` can have it."""

    def output_bytes(self, job: JobId, work: Work, setup: ServerSetup) -> Mapping[str, int]:
        """Port → size of what one job leaves."""

    def handle(self) -> Handle:
        """A new one."""

    def begun(self, step: int) -> Handle:
        """A new one, of an output from which a job goes on after ``step``."""

    def steps_done(self, handle: Handle) -> int:
        """What is said in it."""

    def fits(self, setup: ServerSetup, roles: frozenset[Role]) -> bool:
        """Whether its device has room for these roles beside what other servers hold there."""

    def mishap(self, kind: str) -> bool:
        """Whether chance has it that something goes wrong."""

    def busy(self, server: str, role: Role | None, since: float) -> None:
        """Its device worked from ``since`` until now; role None: loading weights."""

    def gone(self, server: ServerId) -> None:
        """It has left of its own accord."""

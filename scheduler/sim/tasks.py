"""What a simulated server's device is asked to do: jobs, and the swaps of role changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from scheduler.actions import AssignRoles, Run
from scheduler.cost.work import Work
from scheduler.sim.device import Task
from wire.types import Epoch, Handle, ServerId


class Stage(Enum):
    FETCHING = auto()
    ROOMLESS = auto()
    """Its inputs are here, room for its outputs is not."""
    ON_DEVICE = auto()
    """In line or computing."""
    PUBLISHING = auto()
    OVER = auto()


@dataclass(slots=True, eq=False, kw_only=True)
class Job(Task):
    run: Run
    work: Work
    stage: Stage = Stage.FETCHING
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Port → bytes of what it leaves."""
    reserved: int = 0
    shown: list[Handle] = field(default_factory=list)
    first_step: int = 0
    """Steps that were done elsewhere."""
    hands_over: bool = False
    """It is stopping so that another server goes on."""
    whole_seconds: float = 0.0
    """A step takes, alone …"""
    halved_seconds: float = 0.0
    """… and where another server computes half of it."""
    leader: tuple[ServerId, Epoch] | None = None
    """Whose guided steps it computes half of, and nothing else."""
    here_at: float = 0.0
    ready_at: float = 0.0

    @property
    def epoch(self) -> Epoch:
        return self.run.epoch


@dataclass(slots=True, eq=False, kw_only=True)
class Load(Task):
    """The swap: the weights are on the device."""

    order_given: AssignRoles
    seconds: float
    """All that the change took, what it waited for the device aside."""
    from_host: bool

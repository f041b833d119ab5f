"""The seam between a fleet and what its processes run on: this machine, Ray, and whatever comes next."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from fleet.programs import Member
from wire.children import Condition


class LaunchFailed(Exception):
    """A process cannot be started or stopped as asked; the text is for the operator."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How one process is."""

    name: str
    condition: Condition
    where: str
    """Its machine or process, for people."""
    starts: int
    """How often it was started; 1 unless it crashed or lost its machine."""


class Launcher(Protocol):
    """Keeps processes running that were started: those that end are started again, here or elsewhere."""

    async def start(self, member: Member) -> None:
        """Returns before it serves. Raises ``LaunchFailed`` where there is no room for it."""

    async def stop(self, member: Member, *, drain: bool = True) -> None:
        """Returns when it has ended. Without ``drain`` nobody can ask for its work any more, so it is not waited for.
        Nothing happens if it does not run."""

    async def list(self) -> Sequence[Standing]:
        """All that were started and not stopped, by name."""

    def watch(self) -> AsyncIterator[Standing]:
        """Each change, as it is noticed; for ever."""

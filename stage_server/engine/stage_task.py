"""What one job is to compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stage_server.engine.base import NamedValues, Partner
from stage_server.engine.ip_adapters import IPAdapters
from stage_server.engine.split import Part, WorkflowSplit
from stage_server.step_caches import StepCache
from wire.params import ImageParams
from wire.types import Role


@dataclass(frozen=True, slots=True)
class StageTask:
    """A job whose ``params`` are complete and checked."""

    role: Role
    workflow: WorkflowSplit
    params: ImageParams
    images: Mapping[str, bytes]
    inputs: NamedValues
    size_asked: tuple[int, int] = (0, 0)
    """Width and height that the request itself names, in pixels; 0 where the model chooses."""
    resume: NamedValues | None = None
    """What another engine left of it."""
    partner: Partner | None = None
    """Who computes the other half of each guided step."""
    cache: StepCache | None = None
    """Of its steps; None: each is computed."""
    ip_adapters: IPAdapters | None = None

    @property
    def part(self) -> Part:
        return self.workflow.parts[self.role]

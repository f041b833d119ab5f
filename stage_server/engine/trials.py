"""A tiny job for each role that comes: the first real one is not slow, and a role that cannot run is not announced."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
from diffusers import ModularPipeline

from stage_server.engine.base import EngineError, LoadError, NonFinite, OutOfMemory, Outputs
from stage_server.engine.forms import Forms
from stage_server.engine.geometry import Geometry
from stage_server.engine.split import WorkflowSplit
from stage_server.engine.stage_task import StageTask
from stage_server.engine.tested import TESTED_FAMILIES
from stage_server.engine.warm_up import WarmUp, cached, warm_up
from stage_server.step_caches import StepCaches
from wire.params import ModelInfo
from wire.types import Role

_log = logging.getLogger(__name__)


class Trials:
    """Of one engine. ``made`` is what they made, for those of later roles; in host memory."""

    def __init__(
        self,
        workflows: Mapping[str, WorkflowSplit],
        geometry: Geometry,
        info: ModelInfo,
        dtype: torch.dtype,
        step_caches: StepCaches,
        compute: Callable[[StageTask, ModularPipeline], Outputs],
    ) -> None:
        """``compute`` raises ``EngineError``."""
        self._workflows = workflows
        self._geometry = geometry
        self._info = info
        self._dtype = dtype
        self._step_caches = step_caches
        self._compute = compute
        self._have_caches_run = False
        self.made: dict[Role, Outputs] = {}
        self.forms = Forms()

    def warm_up(self, role: Role, pipeline: ModularPipeline) -> None:
        """On ``pipeline``, as it will be once the role has come. Raises ``LoadError``."""
        self._warm_up(role, pipeline, self.forms)

    def forget(self) -> None:
        self.made.clear()

    def _warm_up(self, role: Role, pipeline: ModularPipeline, forms: Forms) -> None:
        """Where a stand-in has a form of which nobody can be sure, its failure says nothing about the role: what
        another server told is then left out.
        """
        warming = warm_up(role, self._workflows, self._geometry, self._info, self._dtype, self.made, forms)
        if warming is None:
            _log.warning("%s: the %s is not warmed up, as what it reads is not known here", self._info.name, role)
            return
        try:
            self.made[role] = self._compute(warming.task, pipeline)
        except EngineError as error:
            is_sure = warming.is_real or self._info.family in TESTED_FAMILIES
            if not warming.is_told and (is_sure or isinstance(error, OutOfMemory | NonFinite)):
                raise LoadError(f"{self._info.name} cannot run the role {role} here: {error}") from error
            which = "what others told of its inputs" if warming.is_told else "stand-ins"
            _log.warning("%s: the %s is not warmed up, it refused %s: %s", self._info.name, role, which, error)
            is_refused = True
        else:
            is_refused = False
        if is_refused and warming.is_told:  # not while the error holds what it had on the device
            self._warm_up(role, pipeline, Forms())
        if is_refused:
            return
        if not warming.is_guessed:
            self.forms.note(role, self.made[role])
        if role is Role.DIT and not self._have_caches_run:
            self._run_caches(warming, pipeline)

    def _run_caches(self, warming: WarmUp, pipeline: ModularPipeline) -> None:
        """Once: it takes many times what the role's own job does, and says the same about weights that come again."""
        for level, task in cached(warming, self._step_caches):
            try:
                self._compute(task, pipeline)
            except EngineError as error:
                raise LoadError(
                    f"step cache {level}={task.cache} cannot be used with {self._info.name}: {error}"
                ) from error
        self._have_caches_run = True

"""A diffusion model's engine with one stage more, which is no part of it: before its encoder or after its decoder.

Such engines go around each other: one that has an upscaler and an enhancer is an engine around an engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import ClassVar, Protocol

import msgspec
import torch

from stage_server.engine.base import (
    DeviceTurn,
    Engine,
    EngineError,
    JobControl,
    LoadError,
    MakeBuffer,
    NamedValues,
    Outputs,
    Prepared,
    StageJob,
)
from stage_server.engine.default_dtype import guarded
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.forms import Forms
from stage_server.engine.giving_way import GivingWay
from stage_server.engine.leaves import nbytes
from stage_server.engine.staging import computed
from stage_server.engine.translated import errors_translated
from wire.params import Enhancer, ImageParams, ModelInfo, Upscaler
from wire.to_gateway import RoleInfo
from wire.types import Role


class FurtherModel(Protocol):
    """What computes the stage. Its weights are there from ``load`` to ``unload``."""

    nbytes: int
    """Of its weights on the device, before they are there."""

    @property
    def info(self) -> Upscaler | Enhancer: ...

    @property
    def module(self) -> torch.nn.Module | None:
        """With its weights; None unless they are there."""

    def load(self) -> None:
        """Raises ``LoadError``."""

    def unload(self) -> None: ...

    def warm_up(self) -> None:
        """Raises whatever the model raises."""


class FurtherEngine(ABC):
    """``Engine``: what concerns ``role`` is done here, all else by ``inner``."""

    role: ClassVar[Role]

    def __init__(self, inner: DiffusersEngine | FurtherEngine, model: FurtherModel) -> None:
        self.inner = inner
        self.model = model
        self._own = frozenset({self.role})
        self.beside: Callable[[], int] = lambda: 0
        inner.beside = lambda: self._own_bytes + self.beside()

    @abstractmethod
    def bound(self, params: ImageParams) -> int:
        """Of the outputs of its jobs, in bytes."""

    @abstractmethod
    def prepared(self, params: ImageParams, inputs: NamedValues) -> Prepared:
        """As ``Engine.prepare``; its model is loaded."""

    @property
    def _is_loaded(self) -> bool:
        return self.model.module is not None

    @property
    def loaded_bytes(self) -> int:
        """Of the model's weights; 0 unless they are there."""
        return 0 if self.model.module is None else nbytes(self.model.module)

    @property
    def _own_bytes(self) -> int:
        return self.model.nbytes if self._is_loaded else 0

    # --- as it introduces itself --------------------------------------------------------------------------------------

    @property
    def roles(self) -> frozenset[Role]:
        return self.inner.roles | (self._own if self._is_loaded else frozenset())

    def describe(self) -> ModelInfo:
        return msgspec.structs.replace(self.inner.describe(), **{self.role.value: self.model.info})

    def capable(self) -> dict[Role, RoleInfo]:
        """The memory that its jobs take is not known: it is taken to be that of the model's largest."""
        others = self.inner.capable()
        spared = max(info.activation_bytes for info in others.values())
        found = others | {self.role: RoleInfo(weight_bytes=self.model.nbytes, activation_bytes=spared)}
        return {role: found[role] for role in Role if role in found}

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @property
    def device_class(self) -> str:
        return self.inner.device_class

    @property
    def device_uuid(self) -> str:
        return self.inner.device_uuid

    @property
    def software(self) -> str:
        return self.inner.software

    @property
    def shares_guidance(self) -> bool:
        return self.inner.shares_guidance

    @property
    def memory_bytes(self) -> int:
        return self.inner.memory_bytes

    @property
    def resident_bytes(self) -> int:
        return self.inner.resident_bytes + self._own_bytes

    @property
    def host_buffer(self) -> MakeBuffer | None:
        return self.inner.host_buffer

    def note_peak(self) -> None:
        """Of the device's memory, after a job."""
        self.inner.note_peak()

    @property
    def forms(self) -> Forms:
        return self.inner.forms

    @property
    def warm(self) -> frozenset[Role]:
        return self.inner.warm

    # --- roles --------------------------------------------------------------------------------------------------------

    def preload(self, roles: frozenset[Role], turn: DeviceTurn = nullcontext) -> None:
        """Its own model is read when it is needed."""
        self.inner.preload(roles - self._own, turn)

    def set_roles(self, roles: frozenset[Role], turn: DeviceTurn = nullcontext) -> None:
        was_loaded, wanted = self._is_loaded, self.role in roles
        try:
            if wanted and not was_loaded:
                self._load(turn)
            if roles - self._own != self.inner.roles:
                self.inner.set_roles(roles - self._own, turn)
        except LoadError:
            if not was_loaded:
                self.model.unload()
            raise
        if was_loaded and not wanted:
            self.model.unload()

    def _load(self, turn: DeviceTurn) -> None:
        try:
            with errors_translated(self.device):
                with guarded(turn):
                    self.model.load()
                with GivingWay(turn, partial(computed, self.device)).in_calls_of([self.model.module]):
                    self.model.warm_up()
        except EngineError as error:
            raise LoadError(f"the {self.role} {self.model.info.name} cannot run here: {error}") from error

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def output_bound(self, job: StageJob) -> int:
        return self.bound(job.params) if job.role is self.role else self.inner.output_bound(job)

    def prepare(self, job: StageJob, inputs: NamedValues) -> Prepared:
        if job.role is not self.role:
            return self.inner.prepare(job, inputs)
        if not self._is_loaded:
            raise EngineError(f"this server does not hold the role {job.role}")
        return self.prepared(job.params, inputs)

    def run(self, job: StageJob, inputs: NamedValues, control: JobControl) -> Outputs:
        return self.prepare(job, inputs)(control)

    def peak_bytes(self) -> int:
        return self.inner.peak_bytes()

    def close(self) -> None:
        self.model.unload()
        self.inner.close()


def innermost(engine: Engine) -> Engine:
    while isinstance(engine, FurtherEngine):
        engine = engine.inner
    return engine

"""Runs the stages of a real model: diffusers' modular pipelines, one role at a time.

Knows nothing of any family but what blocks and configurations say; the few exceptions are in ``geometry``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import inf
from typing import Any, Literal

import msgspec
import torch
from diffusers import ModularPipeline
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.modular_pipelines import PipelineState

from stage_server.engine.adapter_file import AdapterReader
from stage_server.engine.adapters import Adapters
from stage_server.engine.attention import AUTO, Shape, fastest
from stage_server.engine.base import (
    HOST_BANDWIDTH,
    UNKNOWN_LARGEST,
    DeviceTurn,
    EngineError,
    JobControl,
    MakeBuffer,
    NamedValues,
    Outputs,
    Prepared,
    StageJob,
    Unwatched,
)
from stage_server.engine.checkpoint import Checkpoint
from stage_server.engine.common import CommonComponents, common_keys
from stage_server.engine.compiled import Compiler, refuse_missing_compiler
from stage_server.engine.components import Components
from stage_server.engine.control_source import SteeringSources
from stage_server.engine.forms import Forms
from stage_server.engine.held_roles import HeldRoles, room_beside
from stage_server.engine.inpainting import with_inpainting
from stage_server.engine.job_check import check, check_strength, complete
from stage_server.engine.job_view import quiet_diffusers, quiet_loops
from stage_server.engine.load_options import AUTO_TILE, LoadOptions
from stage_server.engine.model_info import default_size, denoiser_config, read_geometry, read_info
from stage_server.engine.output_bound import output_bound
from stage_server.engine.port import ForwardPort
from stage_server.engine.quantised import versions
from stage_server.engine.requirements import refuse_missing_packages
from stage_server.engine.software import computed_by
from stage_server.engine.split import CONTROLNET, DENOISERS, split_workflows
from stage_server.engine.stage_run import run_stage, stage_state
from stage_server.engine.stage_task import StageTask
from stage_server.engine.staging import CudaStaging, HostStaging, Staging
from stage_server.engine.steering import Steering
from stage_server.engine.tested import REMEMBERING, TESTED_FAMILIES, warn_of_untested
from stage_server.engine.tiling import DecodedBytes, chosen_side, decoded_bytes, has_limit
from stage_server.engine.translated import errors_translated, known_device, opening, torch_dtype
from stage_server.engine.trials import Trials
from stage_server.offload import Offloads
from stage_server.step_caches import StepCache
from stage_server.weight_formats import Formats
from wire.guiders import GUIDERS
from wire.params import ImageParams, ModelInfo
from wire.to_gateway import RoleInfo
from wire.types import REQUIRED, Role
from wire.values import DTYPE_BYTES

_log = logging.getLogger(__name__)

ACTIVATION_SHARE = 0.1
"""Of the device's memory, left free beside the weights: what a job needs is only known once it has run."""

WARM_UP_SECONDS = 0.5
"""Of a role in host memory, beside copying it, until it was measured."""


class DiffusersEngine:
    """One model on one device. See ``stage_server.engine.base.Engine`` for what the methods promise."""

    def __init__(
        self,
        model: str,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        revision: str | None = None,
        compiler: Compiler | None = None,
        attention_backend: str | None = None,
        local_files_only: bool = False,
        weight_cache_bytes: int | None = 0,
        together: Mapping[Role, int] | None = None,
        adapters: Mapping[str, str] | None = None,
        adapter_bytes: int = 0,
        steering: SteeringSources | None = None,
        formats: Formats | None = None,
        offloads: Offloads | None = None,
        vae_tile: int | Literal["auto"] | None = None,
        step_caches: Mapping[str, StepCache | None] | None = None,
        loads: bool = True,
    ) -> None:
        """Read the configurations of ``model``: a bundled name, a folder or a hub id. Loads no weights.

        ``revision`` concerns the hub; ``weight_cache_bytes`` of host memory are for weights of roles that were held or
        may come, None: a share of what is free. Of each role as many jobs may share the device as ``together`` says, 1
        where it says nothing. ``adapters`` (name → file, folder or hub id) may be asked for, and take ``adapter_bytes``
        of the device at most. ``steering``: ControlNets and IP-Adapters. ``formats``, ``offloads``: component → how its
        weights are quantised, how many are on the device; ``vae_tile``: pixels of a side of the tiles in which the VAE
        takes larger pictures, ``auto``: as the device's memory has it; ``step_caches``: by level, before those of the
        model. Without ``loads`` it only answers questions, also for what cannot be here. Raises ``LoadError``, with a
        text for the operator.
        """
        quiet_diffusers()
        self._dtype = dtype
        self._device = known_device(device)
        self._staging: Staging = CudaStaging(self._device) if self._device.type == "cuda" else HostStaging()
        self._peak_bytes = 0
        self._decoded: DecodedBytes | None = None
        self.compiler = compiler
        self._port = ForwardPort(self._adapted) if compiler is None else ForwardPort(self._adapted, compiler.instead)
        self.beside: Callable[[], int] = lambda: 0
        options = LoadOptions(
            self._device,
            torch_dtype(dtype),
            compiler,
            attention_backend,
            weight_cache_bytes,
            formats or {},
            offloads or {},
            step_caches or {},
            vae_tile,
            loads,
        )
        if compiler is not None and loads:
            refuse_missing_compiler(self._device)
        with opening(model):
            self._open(Checkpoint.find(model, revision, local_files_only), options, steering or SteeringSources())
        self._together = {role: (together or {}).get(role, 1) if self._may_join(role) else 1 for role in REQUIRED}
        self._allow(adapters or {}, options, adapter_bytes)

    def _open(self, checkpoint: Checkpoint, options: LoadOptions, sources: SteeringSources) -> None:
        self._pipeline = checkpoint.open_pipeline()
        blocks = self._pipeline.blocks  # a copy, ours from here on
        quiet_loops(blocks)
        steering = Steering.of(self._pipeline, blocks, sources, options, checkpoint)
        self._controls, self._ip_adapters = steering.controls, steering.ip_adapters
        self._components = Components(self._pipeline, checkpoint, options)
        scheduler = self._components.files.get("scheduler")
        available = self._components.declared | self._controls.available
        self._workflows = with_inpainting(
            steering.usable(split_workflows(blocks, available)), scheduler.type_hint if scheduler else None
        )
        family = blocks.model_name or type(blocks).__name__
        warn_of_untested(checkpoint.name, family)
        self._components.load_guiders()
        self._geometry = read_geometry(self._pipeline, family, self._components)
        if options.attention_backend == AUTO and options.loads:
            self._choose_attention(checkpoint, options)
        if options.vae_tile is not None:
            self._decoded = self._choose_tile(checkpoint, options)
        self._info = read_info(
            self._pipeline,
            family,
            checkpoint,
            self._components,
            self._workflows,
            self._geometry,
            self._dtype,
            self._ip_adapters,
        )
        nbytes = self._components.host_bytes
        offered = self._controls.offered(
            nbytes, sum(nbytes(name) for name in DENOISERS if name in self._components.files)
        )
        self._info = msgspec.structs.replace(self._info, controls=offered)
        caches = self._components.step_caches
        self._trials = Trials(self._workflows, self._geometry, self._info, options.dtype, caches, self._compute)
        self._held = HeldRoles(self._pipeline, self._components, self._needed, self._trials.warm_up, self._room)

    def _choose_attention(self, checkpoint: Checkpoint, options: LoadOptions) -> None:
        width, height = default_size(self._pipeline, checkpoint, self._geometry)
        tokens = width * height // self._geometry.token_pixels**2
        shape = Shape.of(denoiser_config(self._components), tokens)
        self._components.attention_backend = fastest(shape, options.device, options.dtype)

    def _choose_tile(self, checkpoint: Checkpoint, options: LoadOptions) -> DecodedBytes | None:
        """By what a device of this size leaves for jobs, not by what is free now: what bytes a picture has depends on
        it. Returns what is predicted; of videos nothing is, as one picture does not tell what many frames take."""
        vae, config = self._components.files.get("vae"), self._components.configs.get("vae", {})
        decoded = None
        if vae is not None and not any(workflow.makes_video for workflow in self._workflows.values()):
            width, height = default_size(self._pipeline, checkpoint, self._geometry)
            largest = int(checkpoint.serving_defaults().get("max_pixels", 0)) or UNKNOWN_LARGEST * width * height
            decoded = decoded_bytes(vae.type_hint, config, options.dtype, self._geometry, largest)
        if options.vae_tile == AUTO_TILE and has_limit(self._device):
            most = int(ACTIVATION_SHARE * self.memory_bytes)
            self._components.vae_tile = chosen_side(decoded, most, self._geometry.vae_factor)
        return decoded

    def _allow(self, sources: Mapping[str, str], options: LoadOptions, limit: int) -> None:
        reader = AdapterReader(type(self._pipeline), self._components)
        self._adapters = Adapters(sources, reader, options.device, options.dtype, limit)
        self._components.adapted = self._adapters.components
        offered = self._adapters.offered(lambda name: [role for role in REQUIRED if name in self._needed({role})])
        self._info = msgspec.structs.replace(self._info, adapters=offered)

    @property
    def roles(self) -> frozenset[Role]:
        return self._held.held

    @property
    def resident_bytes(self) -> int:
        return self._components.resident_bytes

    @property
    def host_buffer(self) -> MakeBuffer | None:
        return self._staging.host_buffer

    @property
    def forms(self) -> Forms:
        return self._trials.forms

    @property
    def warm(self) -> frozenset[Role]:
        return self._held.warm

    def _adapted(self, module: Any, uses: Hashable) -> AbstractContextManager[None]:
        """One call of a component with the adapters of a job, a tuple of ``AdapterUse``."""
        name = self._components.adapted_name(self._ip_adapters.denoiser(module))
        if name is None or not isinstance(uses, tuple) or not uses:
            return nullcontext()
        return self._adapters.applied(uses, (name,))

    @property
    def resident_adapters(self) -> tuple[tuple[str, str], ...]:
        """(Name, component), used longest ago first."""
        return self._adapters.resident

    def describe(self) -> ModelInfo:
        return self._info

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def token_pixels(self) -> int:
        """Side of the square of pixels that one token of the denoiser stands for."""
        return self._geometry.token_pixels

    def capable(self) -> dict[Role, RoleInfo]:
        weights = {role: sum(map(self._components.nbytes, self._needed({role}))) for role in REQUIRED}
        common = self._components.common_bytes
        copied = HOST_BANDWIDTH if self._device.type == "cuda" else inf
        return {
            role: RoleInfo(
                weight_bytes=weights[role],
                common_bytes=dict(common[name] for name in self._needed({role}) & common.keys()),
                activation_bytes=self._job_bytes(role),
                together=self._together[role],
                warm_seconds=WARM_UP_SECONDS + weights[role] / copied,
            )
            for role in REQUIRED
        }

    @property
    def device_class(self) -> str:
        if self._device.type == "cuda":
            return torch.cuda.get_device_name(self._device)
        return f"{self._device.type}-{torch.get_num_threads()}"

    @property
    def device_uuid(self) -> str:
        return f"GPU-{torch.cuda.get_device_properties(self._device).uuid}" if self._device.type == "cuda" else ""

    @property
    def software(self) -> str:
        if self._info.family not in TESTED_FAMILIES - REMEMBERING:
            return ""  # its loop keeps, or may keep, what nobody looks for
        return computed_by(self._device, versions(self._components.formats))

    @property
    def shares_guidance(self) -> bool:
        """Where its guider is one that the port sees through: it calls the denoiser, and changes nothing in it."""
        has_guider = isinstance(getattr(self._pipeline, "guider", None), BaseGuidance)
        return bool(self.software) and has_guider and self._may_join(Role.DIT)

    @property
    def memory_bytes(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.get_device_properties(self._device).total_memory)
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def peak_bytes(self) -> int:
        return self._peak_bytes

    @staticmethod
    def acquaint(engines: Sequence[DiffusersEngine]) -> None:
        """Engines of one process and device hold once what their models have in common, on the device and in host
        memory, of which they have what the first of them was given. Before anything is loaded.
        """
        common, parts = CommonComponents(), [engine._components for engine in engines]
        for components, keys in zip(parts, common_keys([each.shareable() for each in parts]), strict=True):
            components.share(keys, common, parts[0].cache)

    def close(self) -> None:
        self._held.clear()
        self._trials.forget()
        if self.compiler is not None:
            self.compiler.close()

    def preload(self, roles: frozenset[Role], turn: DeviceTurn = nullcontext) -> None:
        self._held.preload(roles, turn)

    def set_roles(self, roles: frozenset[Role], turn: DeviceTurn = nullcontext) -> None:
        for role in sorted(roles - self._held.held):
            blocks = (workflow.parts[role].blocks for workflow in self._workflows.values())
            refuse_missing_packages(f"{self._info.name} cannot run the role {role} here", blocks)
        try:
            self._held.change(roles, turn)
        finally:
            self._adapters.keep_only(self._components.resident)
            if "unet" not in self._components.resident:
                self._ip_adapters.clear()

    def output_bound(self, job: StageJob) -> int:
        """Raises ``BadJob`` for what ``run`` would refuse."""
        params = self._checked(job)
        return output_bound(job, params, self._workflows[params.workflow], self._geometry, DTYPE_BYTES[self._dtype])

    def prepare(self, job: StageJob, inputs: NamedValues) -> Prepared:
        if job.role not in self._held.held:
            raise EngineError(f"this server does not hold the role {job.role}")
        task = self._task(job, inputs)
        with errors_translated(self._device):
            state = stage_state(task, self._staging)
            self._adapters.read_ahead(task.params.adapters, self._components.resident)
            if task.params.ip_adapter is not None and job.role is Role.DIT:
                self._ip_adapters.read_ahead(self._pipeline.unet, task.params.ip_adapter)
        return partial(self._computed, job, task, [state])

    def run(self, job: StageJob, inputs: NamedValues, control: JobControl) -> Outputs:
        return self.prepare(job, inputs)(control)

    def _computed(self, job: StageJob, task: StageTask, state: list[PipelineState], control: JobControl) -> Outputs:
        """``state`` is taken out of its list: what it has on the device is free before the outputs are published."""
        alone = task.params.guider is not None and GUIDERS[task.params.guider.name].changes_layers
        share, adapters = job.share and self._together[job.role] > 1 and not alone, task.params.adapters
        with errors_translated(self._device):
            self._adapters.load(adapters, self._components.resident)  # before anybody waits for this job's calls
        with (
            errors_translated(self._device),
            self._port.open(control, share=share, adapters=adapters, fast=job.fast and not alone) as port,
        ):
            finish = run_stage(self._pipeline, task, state.pop(), self._staging, port, control, self._dtype)
        self.note_peak()
        control.device_done()
        with errors_translated(self._device):
            return finish()

    def _task(self, job: StageJob, inputs: NamedValues) -> StageTask:
        params = self._checked(job)
        size_asked = job.params.width, job.params.height
        workflow = self._workflows[params.workflow]
        cache = self._components.step_caches.get(params.step_cache)
        own = job.partner, cache, self._ip_adapters
        return StageTask(job.role, workflow, params, job.images, inputs, size_asked, job.resume, *own)

    def _checked(self, job: StageJob) -> ImageParams:
        params = complete(job.params, self._info)
        check(params, job.images, job.role, self._info)
        self._adapters.check(params.adapters)
        check_strength(params, self._workflows[params.workflow].parts[Role.DIT].default("strength"))
        return params

    def _may_join(self, role: Role) -> bool:
        """Jobs that change a module for themselves between its calls cannot be on the device with others."""
        if role is Role.DIT:
            guider = getattr(self._pipeline, "guider", None)
            return guider is None or type(guider).prepare_models is BaseGuidance.prepare_models
        return not self._components.configs.get("vae", {}).get("force_upcast") or self._dtype != "float16"

    def _needed(self, roles: Iterable[Role]) -> frozenset[str]:
        """Components that the roles' blocks use, in any workflow."""
        names = (self._workflows[name].parts[role].components for name in self._workflows for role in roles)
        found = frozenset().union(*names)
        if CONTROLNET in found:
            found |= self._controls.components
        return found & frozenset(self._components.files)

    @property
    def _spared(self) -> int:
        """Bytes of the device for jobs and adapters."""
        return int(ACTIVATION_SHARE * self.memory_bytes) + self._adapters.most_bytes + self._ip_adapters.most_bytes

    def _job_bytes(self, role: Role) -> int:
        """That a job of the role may take: what is spared, but of pictures in tiles what is predicted, if less."""
        side = self._components.vae_tile
        if role is not Role.DECODER or side is None or self._decoded is None:
            return self._spared
        return min(self._spared, self._decoded.tiled(side))

    def _room(self) -> int:
        """Bytes that further weights may take beside those that are resident."""
        return room_beside(self._device, self.memory_bytes, self._spared, lambda: self.resident_bytes + self.beside())

    def _compute(self, task: StageTask, pipeline: ModularPipeline) -> Outputs:
        """For nobody, on ``pipeline`` instead of the engine's own."""
        nobody = Unwatched()
        with errors_translated(self._device), self._port.open(nobody) as port:
            state = stage_state(task, self._staging)
            return run_stage(pipeline, task, state, self._staging, port, nobody, self._dtype)()

    def note_peak(self) -> None:
        if self._device.type == "cuda":
            self._peak_bytes = torch.cuda.max_memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)

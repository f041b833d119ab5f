"""Runs the stages of a real model: diffusers' modular pipelines, one role at a time.

Knows nothing of any family but what blocks and configurations say; the few exceptions are in ``geometry``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch

from stage_server.engine import pictures
from stage_server.engine.base import (
    EngineError,
    JobControl,
    LoadError,
    NamedValues,
    NonFinite,
    OutOfMemory,
    Outputs,
    Preview,
    StageJob,
)
from stage_server.engine.checkpoint import Checkpoint
from stage_server.engine.components import Components, LoadOptions
from stage_server.engine.inpainting import with_inpainting
from stage_server.engine.job_check import check, check_strength, complete
from stage_server.engine.job_view import hook_loops
from stage_server.engine.model_info import read_geometry, read_info
from stage_server.engine.split import split_workflows
from stage_server.engine.stage_run import StageTask, run_stage
from stage_server.engine.staging import CudaStaging, HostStaging, Staging
from stage_server.engine.tensors import TORCH_DTYPES
from stage_server.engine.warm_up import warm_up
from wire.errors import UnsupportedValue
from wire.params import ImageParams, ModelInfo
from wire.to_gateway import RoleInfo
from wire.types import Role
from wire.values import DTYPE_BYTES

TESTED_FAMILIES = frozenset(
    {
        "z-image",
        "flux",
        "flux-kontext",
        "flux2",
        "flux2-klein",
        "krea2",
        "stable-diffusion-3",
        "stable-diffusion-xl",
        "qwenimage",
        "qwenimage-edit",
        "qwenimage-edit-plus",
    }
)

_log = logging.getLogger(__name__)

_BLOCK_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, OSError, UnsupportedValue)

ACTIVATION_SHARE = 0.1
"""Of the device's memory, left free beside the weights: what a job needs is only known once it has run."""

_CLIP_TOKENS = 77
"""What text encoders take whose blocks have no ``max_sequence_length``."""


class DiffusersEngine:
    """One model on one device. See ``stage_server.engine.base.Engine`` for what the methods promise."""

    def __init__(
        self,
        model: str,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        revision: str | None = None,
        compile: bool = False,  # noqa: A002  # as the flag and torch call it
        attention_backend: str | None = None,
        local_files_only: bool = False,
        weight_cache_bytes: int = 0,
    ) -> None:
        """Read the configurations of ``model``: a bundled name, a folder or a hub id. Loads no weights.

        ``revision`` concerns the hub; ``weight_cache_bytes`` of host memory keep what role changes unload. Raises
        ``LoadError``, with a text for the operator.
        """
        _quiet_diffusers()
        self._dtype = dtype
        self._device = _device(device)
        self._staging: Staging = CudaStaging(self._device) if self._device.type == "cuda" else HostStaging()
        self._roles: frozenset[Role] = frozenset()
        self._peak_bytes = 0
        self._made: dict[Role, Outputs] = {}
        """What warm-ups made, for those of later roles; in host memory."""
        options = LoadOptions(self._device, _torch_dtype(dtype), compile, attention_backend, weight_cache_bytes)
        with _opening(model):
            self._open(Checkpoint.find(model, revision, local_files_only), options)

    def _open(self, checkpoint: Checkpoint, options: LoadOptions) -> None:
        self._pipeline = checkpoint.open_pipeline()
        blocks = self._pipeline.blocks  # a copy, ours from here on
        hook_loops(blocks)
        self._components = Components(self._pipeline, checkpoint, options)
        scheduler = self._components.files.get("scheduler")
        self._workflows = with_inpainting(
            split_workflows(blocks, self._components.declared), scheduler.type_hint if scheduler else None
        )
        family = blocks.model_name or type(blocks).__name__
        if family not in TESTED_FAMILIES:
            _log.warning(
                "%s is of the family %s, which is not among those tested: %s",
                checkpoint.name,
                family,
                ", ".join(sorted(TESTED_FAMILIES)),
            )
        self._geometry = read_geometry(self._pipeline, family, self._components)
        self._info = read_info(
            self._pipeline, family, checkpoint, self._components, self._workflows, self._geometry, self._dtype
        )

    @property
    def roles(self) -> frozenset[Role]:
        return self._roles

    def describe(self) -> ModelInfo:
        return self._info

    @property
    def token_pixels(self) -> int:
        """Side of the square of pixels that one token of the denoiser stands for."""
        return self._geometry.token_pixels

    def capable(self) -> dict[Role, RoleInfo]:
        return self._role_info

    @cached_property
    def _role_info(self) -> dict[Role, RoleInfo]:
        files = self._components.files
        sizes = {name: files[name].weight_bytes(self._dtype) for name in files if files[name].is_module}
        weights = {role: sum(sizes.get(name, 0) for name in self._needed({role})) for role in Role}
        spare = int(ACTIVATION_SHARE * self.memory_bytes)
        return {role: RoleInfo(weight_bytes=weights[role], activation_bytes=spare) for role in Role}

    @property
    def device_class(self) -> str:
        if self._device.type == "cuda":
            return torch.cuda.get_device_name(self._device)
        return f"{self._device.type}-{torch.get_num_threads()}"

    @property
    def memory_bytes(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.get_device_properties(self._device).total_memory)
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def peak_bytes(self) -> int:
        return self._peak_bytes

    def close(self) -> None:
        self._components.close()
        self._roles = frozenset()
        self._made.clear()

    def set_roles(self, roles: frozenset[Role]) -> None:
        before = self._components.resident
        needed = self._needed(roles)
        try:
            self._components.unload(before - needed)
            self._components.load(needed)
            for role in (role for role in Role if role in roles - self._roles):  # each feeds the next
                self._warm_up(role)
        except LoadError:
            self._restore(before)
            raise
        self._roles = roles

    def output_bound(self, job: StageJob) -> int:
        """Raises ``BadJob`` for what ``run`` would refuse."""
        return max(self._member_bound(job.role, *member) for member in zip(job.members, _images(job), strict=True))

    def _member_bound(self, role: Role, member: ImageParams, images: Mapping[str, bytes]) -> int:
        params = self._checked(role, member, images)
        if role is Role.DECODER:
            return pictures.encoded_bound(params.width, params.height)
        if role is Role.DIT:
            return self._geometry.dit_bound(params.width, params.height)
        uploads = [pictures.upload_pixels(data) for data in images.values()]
        block_default = self._workflows[params.workflow].parts[role].default("max_sequence_length")
        tokens = params.max_sequence_length or block_default or _CLIP_TOKENS
        return self._geometry.encoder_bound(tokens, DTYPE_BYTES[self._dtype], params.width * params.height, uploads)

    def run(self, job: StageJob, inputs: tuple[NamedValues, ...], control: JobControl) -> tuple[Outputs, ...]:
        """Members run one after the other: each then has the very pixels that it has alone."""
        if job.role not in self._roles:
            raise EngineError(f"this server does not hold the role {job.role}")
        tasks = [self._task(job, *member) for member in zip(job.members, _images(job), inputs, strict=True)]
        results = []
        with _errors_translated(self._device):
            for index, task in enumerate(tasks):
                progress = _MemberProgress(control, index, len(tasks))
                results.append(run_stage(self._pipeline, task, self._staging, progress, self._dtype))
        self._note_peak()
        return tuple(results)

    def _task(self, job: StageJob, member: ImageParams, images: Mapping[str, bytes], inputs: NamedValues) -> StageTask:
        params = self._checked(job.role, member, images)
        workflow = self._workflows[params.workflow]
        return StageTask(job.role, workflow, params, images, inputs, size_asked=(member.width, member.height))

    def _checked(self, role: Role, member: ImageParams, images: Mapping[str, bytes]) -> ImageParams:
        params = complete(member, self._info)
        check(params, images, role, self._info)
        check_strength(params, self._workflows[params.workflow].parts[Role.DIT].default("strength"))
        return params

    def _needed(self, roles: Iterable[Role]) -> frozenset[str]:
        """Components that the roles' blocks use, in any workflow."""
        names = (self._workflows[name].parts[role].components for name in self._workflows for role in roles)
        return frozenset().union(*names) & frozenset(self._components.files)

    def _restore(self, resident: frozenset[str]) -> None:
        """Back to what was resident; roles that cannot come back are no longer claimed."""
        try:
            self._components.unload(self._components.resident - resident, keep=False)  # who knows what is wrong with it
            self._components.load(resident)
        finally:
            self._roles = frozenset(role for role in self._roles if self._needed({role}) <= self._components.resident)

    def _warm_up(self, role: Role) -> None:
        """Run a tiny job, so that the first real one is not slow and a role that cannot run is never announced.

        Where a stand-in has a form of which nobody can be sure, its failure says nothing about the role.
        """
        dtype = _torch_dtype(self._dtype)
        warming = warm_up(role, self._workflows, self._geometry, self._info, dtype, self._made)
        if warming is None:
            _log.warning("%s: the %s is not warmed up, as what it reads is not known here", self._info.name, role)
            return
        try:
            with _errors_translated(self._device):
                self._made[role] = run_stage(self._pipeline, warming.task, self._staging, _Unwatched(), self._dtype)
        except EngineError as error:
            is_sure = warming.is_real or self._info.family in TESTED_FAMILIES
            if is_sure or isinstance(error, OutOfMemory | NonFinite):
                raise LoadError(f"{self._info.name} cannot run the role {role} here: {error}") from error
            _log.warning("%s: the %s is not warmed up, it refused stand-ins: %s", self._info.name, role, error)

    def _note_peak(self) -> None:
        if self._device.type == "cuda":
            self._peak_bytes = torch.cuda.max_memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)


def _images(job: StageJob) -> tuple[Mapping[str, bytes], ...]:
    return job.images or ({},) * len(job.members)


@dataclass(frozen=True, slots=True)
class _MemberProgress:
    """Of one member of a batch: its steps count through, after those of the members before."""

    control: JobControl
    member: int
    members: int

    def step_done(self, step: int, steps: int) -> None:
        self.control.step_done(self.member * steps + step, self.members * steps)

    def preview(self, index: int, step: int, steps: int, values: NamedValues) -> None:
        self.control.preview(Preview(self.member, index, step, steps, values))

    def prompt_read(self, tokens: int, dropped: int) -> None:
        self.control.prompt_read(self.member, tokens, dropped)


class _Unwatched:
    """A warm-up reports to nobody."""

    def step_done(self, step: int, steps: int) -> None:
        pass

    def preview(self, index: int, step: int, steps: int, values: NamedValues) -> None:
        pass

    def prompt_read(self, tokens: int, dropped: int) -> None:
        pass


@contextmanager
def _errors_translated(device: torch.device) -> Iterator[None]:
    """What blocks raise → ``EngineError``. ``JobCancelled`` passes."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"the job does not fit into the memory of {device}") from error
    except _BLOCK_ERRORS as error:
        if "can't allocate memory" in str(error):  # torch's CPU allocator has no class of its own
            raise OutOfMemory(f"the job does not fit into the memory of {device}") from error
        raise EngineError(f"{type(error).__name__}: {error}") from error


@contextmanager
def _opening(model: str) -> Iterator[None]:
    """What reading configurations raises that nobody foresaw → ``LoadError``: they are the operator's to put right."""
    try:
        yield
    except OSError as error:
        raise LoadError(f"{error.filename or model} cannot be read: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise LoadError(f"the configuration of {model} cannot be used: {type(error).__name__}: {error}") from error


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise LoadError(f"device {name!r} is unknown; for example cpu or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LoadError(f"device {name!r} is not there: torch finds no CUDA device")
    return device


def _torch_dtype(name: str) -> torch.dtype:
    dtype = TORCH_DTYPES.get(name)
    if dtype is None or not dtype.is_floating_point:
        raise LoadError(f"dtype {name!r} cannot hold weights; float32, bfloat16 or float16 can")
    return dtype


def _quiet_diffusers() -> None:
    """Errors reach the caller as exceptions; diffusers would log them once more per nested block, with inputs."""
    logging.getLogger("diffusers.modular_pipelines.modular_pipeline").setLevel(logging.CRITICAL)
    logging.getLogger("diffusers.modular_pipelines").setLevel(logging.ERROR)  # warnings quote prompts that are cut
    logging.getLogger("diffusers.guiders.guider_utils").setLevel(logging.ERROR)

"""Runs one role's blocks for one job: values in, values out. The blocks are called on (view, state) directly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ModularPipeline
from diffusers.modular_pipelines import PipelineState

from stage_server.engine import controls, pictures
from stage_server.engine.base import (
    IMAGE_PORT,
    EngineError,
    JobControl,
    Outputs,
    Preview,
)
from stage_server.engine.drawn import drawn, picture
from stage_server.engine.finite import FiniteCheck
from stage_server.engine.halves import halved
from stage_server.engine.job_view import is_loop, job_view
from stage_server.engine.port import JobPort, original
from stage_server.engine.prompt_count import PromptCount
from stage_server.engine.split import CONTROLNET, DENOISERS, GENERATOR
from stage_server.engine.stage_task import StageTask
from stage_server.engine.staging import Staging
from stage_server.engine.step_cache import CachedDenoisers, noise_level
from stage_server.engine.steps import Steps
from stage_server.engine.tensors import ToDevice, as_is, from_wire, generator_from_state, moved, to_wire
from wire.types import REQUIRED, Role
from wire.values import Value

Finish = Callable[[], Outputs]
"""Waits for what has left the device, looks for NaN, writes the picture. Raises ``EngineError``."""


def stage_state(task: StageTask, staging: Staging) -> PipelineState:
    """Every input of the part, on the device: a parameter, a received value, or the blocks' default.

    And what is only passed on. Needs nothing of what computes. Raises ``EngineError`` or ``BadJob``.
    """
    arriving = staging.arriving()
    state = _state(task, arriving.to_device)
    arriving.landed()
    return state


def run_stage(
    pipeline: ModularPipeline,
    task: StageTask,
    state: PipelineState,
    staging: Staging,
    port: JobPort,
    control: JobControl,
    dtype: str,
) -> Finish:
    """Compute one job. Shares nothing with other jobs but weights, and calls of these by way of ``port``.

    ``state`` is that of ``stage_state``. ``dtype`` is that of the weights, for the message if the outputs are not
    finite. What is returned makes the outputs ready, without the device.

    Raises whatever the blocks raise, ``EngineError``, ``BadJob``, or what ``control`` raises.
    """
    check = FiniteCheck(task.role, dtype)
    guider = task.params.guider if task.role is Role.DIT else None
    view = job_view(pipeline, task.params.guidance_scale, port, guider)
    controls.place(view, task.params.controls)
    if task.ip_adapters is not None:
        task.ip_adapters.place(view, task.params.ip_adapter, task.role, port)
    given = dict(state.values)
    port.decoded = lambda decoded: check.look("picture", decoded)
    count = _prompt_count(view, task) if task.role is Role.ENCODER else None
    with (
        torch.no_grad(),
        halved(view, _denoisers(pipeline), task.partner, port, control, staging, is_whole=task.cache is not None),
        _stepping(pipeline, view, task, state, given, staging, port, control),
    ):  # no_grad is per thread
        task.part.blocks(view, state)
    if task.partner is not None and not task.partner.leads:
        return dict
    if count is not None:
        control.prompt_read(*count.result())
    leaving = staging.leaving()
    is_picture = task.role is Role.DECODER
    made: dict[str, dict[str, Any]]
    made = {IMAGE_PORT: {"images": drawn(state, task)}} if is_picture else _sent(state, given, task, check)
    made = moved(made, leaving.to_host)
    check.leave(leaving.to_host)
    leaving.computed()

    def finish() -> Outputs:
        leaving.landed()
        check.settle()
        return picture(made[IMAGE_PORT]["images"], task) if is_picture else _on_wire(made)

    return finish


def _denoisers(pipeline: ModularPipeline) -> list[Any]:
    return [getattr(pipeline, name) for name in DENOISERS if hasattr(pipeline, name)]


def _called_by_steps(view: ModularPipeline) -> list[Any]:
    """The job's own denoisers, of which an IP-Adapter makes others, and its ControlNets."""
    controlnet = getattr(view, CONTROLNET, None)
    modules = [*_denoisers(view), *getattr(controlnet, "nets", [controlnet])]
    return [original(module) for module in modules if isinstance(module, torch.nn.Module)]


@contextmanager
def _stepping(
    pipeline: ModularPipeline,
    view: ModularPipeline,
    task: StageTask,
    state: PipelineState,
    given: Mapping[str, Any],
    staging: Staging,
    port: JobPort,
    control: JobControl,
) -> Iterator[None]:
    """The steps of a dit job are counted, told and shown, or passed over."""
    if task.role is not Role.DIT:
        yield
        return

    def show(index: int, step: int, steps: int, latents: torch.Tensor) -> None:
        values = _sent(_finished_as_of_now(view, task, state, latents), given, task).get(Role.DECODER)
        if values:
            on_host = moved({Role.DECODER: values}, staging.to_host)
            control.preview(Preview(index, step, steps, _on_wire(on_host)[Role.DECODER]))

    loop = _Loop(state)
    steps = Steps(view.scheduler, port, staging, loop, getattr(view, "guider", None))
    denoisers = _denoisers(pipeline)
    if task.resume is not None:
        steps.resume(task.resume, _called_by_steps(view))
    if task.cache is not None:
        port.instead = CachedDenoisers(task.cache, denoisers, _Progress(steps, loop, view.scheduler)).instead
    if task.params.previews:
        steps.show(task.params.previews, show)
    try:
        yield
    finally:
        steps.close()


@dataclass(frozen=True, slots=True)
class _Loop:
    state: PipelineState

    def steps(self) -> int:
        """Where the loop goes through chunks of a video and sizes of each: as many as all of these are to have."""
        timesteps = self.state.get("timesteps")
        if timesteps is not None:
            return len(timesteps)
        sizes = self.state.get("pyramid_num_inference_steps_list") or [self.state.get("num_inference_steps")]
        return int(sum(sizes) * self.state.get("num_latent_chunk"))

    def generator(self) -> torch.Generator | None:
        found = self.state.get(GENERATOR)
        return found if isinstance(found, torch.Generator) else None


@dataclass(frozen=True, slots=True)
class _Progress:
    counted: Steps
    loop: _Loop
    scheduler: Any

    @property
    def done(self) -> int:
        return self.counted.done

    def total(self) -> int:
        return self.loop.steps()

    def sigma(self) -> float | None:
        return noise_level(self.scheduler, self.done)


def _prompt_count(view: ModularPipeline, task: StageTask) -> PromptCount:
    return PromptCount(view, task.params.max_sequence_length, task.part.default("max_sequence_length"))


def _finished_as_of_now(
    view: ModularPipeline, task: StageTask, state: PipelineState, latents: torch.Tensor
) -> PipelineState:
    """The state that there would be if these were the final latents: what follows the loop is run on a copy.

    Some families unpack their latents there.
    """
    blocks = list(task.part.blocks.sub_blocks.values())
    loop = max(index for index, block in enumerate(blocks) if is_loop(block))
    ended = copy.copy(state)
    ended.values = dict(state.values)
    ended.kwargs_mapping = {kind: list(names) for kind, names in state.kwargs_mapping.items()}
    ended.set("latents", latents.to(state.get("latents").dtype))
    for block in blocks[loop + 1 :]:
        block(view, ended)
    return ended


def _state(task: StageTask, to_device: ToDevice) -> PipelineState:
    received, kinds = _received(task, to_device)
    values = _parameters(task) | received
    state = PipelineState()
    for param in task.part.inputs:
        if param.name:
            value = values.get(param.name)
            state.set(param.name, param.default if value is None else value, param.kwargs_type)
    for name, kind in kinds.items():
        state.set(name, received[name], kind)
    for name in _changed_before(task):
        state.set(name, from_wire(task.inputs[name], to_device))
    return state


def _declared(task: StageTask) -> dict[str, Any]:
    """Name → ``OutputParam`` of what earlier roles say that they make for this one."""
    earlier = REQUIRED[: REQUIRED.index(task.role)]
    return {out.name: out for source in earlier for out in task.workflow.crossing(source, task.role)}


def _changed_before(task: StageTask) -> frozenset[str]:
    """Names of received values that an earlier role was given and changed."""
    return frozenset(task.inputs) - frozenset(_declared(task))


def _received(task: StageTask, to_device: ToDevice) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Values that earlier roles made, and the kind under which blocks collect them."""
    outputs = _declared(task)
    present = {name: out for name, out in outputs.items() if task.inputs.get(name) is not None}
    values = {name: from_wire(task.inputs[name], to_device) for name in present if name != GENERATOR}
    if GENERATOR in present:
        values[GENERATOR] = _continued(task)
    return values, {name: out.kwargs_type for name, out in present.items()}


def _continued(task: StageTask) -> torch.Generator:
    generator = generator_from_state(from_wire(task.inputs[GENERATOR], lambda tensor: tensor))
    if generator.initial_seed() != task.params.seed:
        raise EngineError(
            f"the encoder drew from seed {generator.initial_seed()}, this job has seed {task.params.seed}"
        )
    return generator


def _parameters(task: StageTask) -> dict[str, Any]:
    params = task.params
    values: dict[str, Any] = {
        "prompt": params.prompt,
        "negative_prompt": _negative_prompt(task),
        "height": params.height,
        "width": params.width,
        "num_inference_steps": params.num_inference_steps,
        "guidance_scale": params.guidance_scale,
        "guidance_schedule": _guidance_schedule(task),
        "strength": params.strength,
        "max_sequence_length": params.max_sequence_length,
        "num_frames": params.num_frames,
        "max_area": params.width * params.height,
        # Of a mask the blocks may paste into the picture, which they do with PIL's pictures only.
        "output_type": "pil" if task.workflow.masked else "pt",
    }
    if GENERATOR in task.part.reads:
        values[GENERATOR] = torch.Generator("cpu").manual_seed(params.seed)
    uploads = pictures.open_uploads(task.images, task.part.reads)
    return {**values, **task.workflow.constants, **uploads, **controls.inputs(params.controls, task.images)}


def _guidance_schedule(task: StageTask) -> list[float] | None:
    """A scale for each step, where blocks want that: the request's, or those of the model, spread over the steps."""
    default, steps = task.part.default("guidance_schedule"), task.params.num_inference_steps
    if task.params.guidance_scale is not None and steps:
        return [task.params.guidance_scale] * steps
    if default is None or not steps:
        return None
    return [default[(2 * step + 1) * len(default) // (2 * steps)] for step in range(steps)]


def _negative_prompt(task: StageTask) -> str | None:
    """Where the text encoder does not ask the guider, guidance without a negative prompt needs an empty one."""
    params = task.params
    needs_one = not task.workflow.guider_chooses_negative and (params.guidance_scale or 0) > 1
    return "" if needs_one and params.negative_prompt is None else params.negative_prompt


def _sent(
    state: PipelineState,
    given: Mapping[str, Any],
    task: StageTask,
    check: FiniteCheck | None = None,
) -> dict[str, dict[str, Any]]:
    """Port → values for each later role that reads any, all of which ``check`` has seen; tensors where they lie."""
    ports: dict[str, dict[str, Any]] = {}
    later = REQUIRED[REQUIRED.index(task.role) + 1 :]
    for target in later:
        made = {out.name: state.get(out.name) for out in task.workflow.crossing(task.role, target)}
        if target is later[0]:
            made |= _changed(state, given, task, later)
        if check is not None:
            for name, value in made.items():
                check.look(name, value)
        values = {name: value for name, value in made.items() if value is not None}
        if values:
            ports[target] = values
    return ports


def _on_wire(made: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Value]]:
    """Of values whose tensors are on the host."""
    return {
        port: {name: to_wire(name, value, as_is) for name, value in values.items()} for port, values in made.items()
    }


def _changed(state: PipelineState, given: Mapping[str, Any], task: StageTask, later: Sequence[Role]) -> dict[str, Any]:
    """What blocks changed of what they were ``given``, without saying so, and a later role reads: a size, say.

    It goes to the next role, which passes on what it does not read itself: there may be no other way.
    """
    read = {name for role in later for name in task.workflow.parts[role].reads} - {GENERATOR}
    declared = {out.name for target in later for out in task.workflow.crossing(task.role, target)}
    before = _changed_before(task)
    candidates = ((name, state.get(name)) for name in sorted((read & given.keys()) - declared))
    return {name: value for name, value in candidates if name in before or not _same(value, given[name])}


def _same(value: Any, before: Any) -> bool:
    """Of what cannot be compared at a glance, only the same object is the same value."""
    plain = isinstance(value, bool | int | float | str | bytes)
    return value is before or (plain and type(value) is type(before) and bool(value == before))

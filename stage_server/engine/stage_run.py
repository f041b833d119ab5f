"""Runs one role's blocks for one job: values in, values out. The blocks are called on (view, state) directly."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import ModularPipeline
from diffusers.modular_pipelines import PipelineState

from stage_server.engine import pictures
from stage_server.engine.base import IMAGE_PORT, EngineError, NamedValues, Outputs, WrongSize
from stage_server.engine.estimate import Estimator
from stage_server.engine.finite import FiniteCheck
from stage_server.engine.job_view import is_loop, job_view, watch_decoded
from stage_server.engine.prompt_count import PromptCount
from stage_server.engine.split import GENERATOR, Part, WorkflowSplit
from stage_server.engine.staging import Staging
from stage_server.engine.tensors import from_wire, generator_from_state, to_wire
from wire.params import ImageParams
from wire.previews import preview_steps
from wire.types import Role
from wire.values import Value


@dataclass(frozen=True, slots=True)
class StageTask:
    """One member of a job: ``params`` are complete and checked."""

    role: Role
    workflow: WorkflowSplit
    params: ImageParams
    images: Mapping[str, bytes]
    inputs: NamedValues
    size_asked: tuple[int, int] = (0, 0)
    """Width and height that the request itself names, in pixels; 0 where the model chooses."""

    @property
    def part(self) -> Part:
        return self.workflow.parts[self.role]


class Progress(Protocol):
    """What is told of a member on its way; may raise to end it."""

    def step_done(self, step: int, steps: int) -> None: ...

    def preview(self, index: int, step: int, steps: int, values: NamedValues) -> None: ...

    def prompt_read(self, tokens: int, dropped: int) -> None: ...


def run_stage(pipeline: ModularPipeline, task: StageTask, staging: Staging, progress: Progress, dtype: str) -> Outputs:
    """Compute one member. Deterministic; shares nothing with other jobs but weights.

    ``dtype`` is that of the weights, for the message if the outputs are not finite.

    Raises whatever the blocks raise, ``EngineError``, ``BadJob``, or what ``progress`` raises.
    """
    fence = staging.step_fence()

    def finish_step(step: int, steps: int) -> None:
        fence.passed()
        wanted = preview_steps(steps, task.params.previews)
        if step in wanted:
            _show(wanted.index(step), step, steps)
        progress.step_done(step, steps)

    def _show(index: int, step: int, steps: int) -> None:
        latents = estimator.latents() if estimator is not None else None
        if latents is not None:
            values = _sent(_finished_as_of_now(view, task, state, latents), given, task, staging).get(Role.DECODER)
            if values:
                progress.preview(index, step, steps, values)

    check = FiniteCheck(task.role, dtype)
    view = job_view(pipeline, task.params.guidance_scale, finish_step)
    if task.role is Role.DECODER:
        watch_decoded(view, lambda decoded: check.look("picture", decoded))
    estimator = Estimator(view.scheduler) if task.role is Role.DIT and task.params.previews else None
    count = _prompt_count(view, task) if task.role is Role.ENCODER else None
    state = _state(task, staging)
    given = dict(state.values)
    with torch.no_grad():  # per thread
        task.part.blocks(view, state)
    if count is not None:
        progress.prompt_read(*count.result())
    if task.role is Role.DECODER:
        check.settle()
        return {IMAGE_PORT: _picture(state, task)}
    outputs = _sent(state, given, task, staging, check)
    check.settle()
    return outputs


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


def _state(task: StageTask, staging: Staging) -> PipelineState:
    """Every input of the part: a parameter, a received value, or the blocks' default; and what is only passed on."""
    received, kinds = _received(task, staging)
    values = _parameters(task) | received
    state = PipelineState()
    for param in task.part.inputs:
        if param.name:
            value = values.get(param.name)
            state.set(param.name, param.default if value is None else value, param.kwargs_type)
    for name, kind in kinds.items():
        state.set(name, received[name], kind)
    for name in _changed_before(task):
        state.set(name, from_wire(task.inputs[name], staging.to_device))
    return state


def _declared(task: StageTask) -> dict[str, Any]:
    """Name → ``OutputParam`` of what earlier roles say that they make for this one."""
    earlier = list(Role)[: list(Role).index(task.role)]
    return {out.name: out for source in earlier for out in task.workflow.crossing(source, task.role)}


def _changed_before(task: StageTask) -> frozenset[str]:
    """Names of received values that an earlier role was given and changed."""
    return frozenset(task.inputs) - frozenset(_declared(task))


def _received(task: StageTask, staging: Staging) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Values that earlier roles made, and the kind under which blocks collect them."""
    outputs = _declared(task)
    present = {name: out for name, out in outputs.items() if task.inputs.get(name) is not None}
    values = {name: from_wire(task.inputs[name], staging.to_device) for name in present if name != GENERATOR}
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
        "strength": params.strength,
        "max_sequence_length": params.max_sequence_length,
        "max_area": params.width * params.height,
        "output_type": "pil",
    }
    if GENERATOR in task.part.reads:
        values[GENERATOR] = torch.Generator("cpu").manual_seed(params.seed)
    uploads = pictures.open_uploads(task.images, task.part.reads)
    return values | uploads


def _negative_prompt(task: StageTask) -> str | None:
    """Where the text encoder does not ask the guider, guidance without a negative prompt needs an empty one."""
    params = task.params
    needs_one = not task.workflow.guider_chooses_negative and (params.guidance_scale or 0) > 1
    return "" if needs_one and params.negative_prompt is None else params.negative_prompt


def _sent(
    state: PipelineState,
    given: Mapping[str, Any],
    task: StageTask,
    staging: Staging,
    check: FiniteCheck | None = None,
) -> dict[str, dict[str, Value]]:
    """Port → values for each later role that reads any, all of which ``check`` has seen."""
    ports: dict[str, dict[str, Value]] = {}
    later = list(Role)[list(Role).index(task.role) + 1 :]
    for target in later:
        made = {out.name: state.get(out.name) for out in task.workflow.crossing(task.role, target)}
        if target is later[0]:
            made |= _changed(state, given, task, later)
        if check is not None:
            for name, value in made.items():
                check.look(name, value)
        values = {name: to_wire(name, value, staging.to_host) for name, value in made.items() if value is not None}
        if values:
            ports[target] = values
    return ports


def _changed(state: PipelineState, given: Mapping[str, Any], task: StageTask, later: list[Role]) -> dict[str, Any]:
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


def _picture(state: PipelineState, task: StageTask) -> dict[str, Value]:
    images, params = state.get("images"), task.params
    if not isinstance(images, list) or len(images) != 1:
        raise EngineError(f"the decoder made {type(images).__name__}, not one picture")
    for asked, drawn in zip(task.size_asked, images[0].size, strict=True):
        if asked not in (0, drawn):
            width, height = params.width, params.height
            raise WrongSize(f"the picture is {images[0].width}x{images[0].height}, {width}x{height} was asked for; "
                            "this model draws at sizes of its own choice")  # fmt: skip
    picture = pictures.put_back(images[0], task.images) if task.workflow.masked else images[0]
    data = pictures.encode(picture, params.output_format, params.output_compression)
    return {"image": data, "format": params.output_format, "width": picture.width, "height": picture.height}

"""A tiny job for one role, fed with what other roles made in theirs, or with stand-ins where those are elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import msgspec
import torch
from PIL import Image

from stage_server.engine.base import Outputs
from stage_server.engine.geometry import Geometry
from stage_server.engine.job_check import complete
from stage_server.engine.pictures import encode
from stage_server.engine.split import GENERATOR, WorkflowSplit
from stage_server.engine.stage_run import StageTask
from stage_server.engine.tensors import to_wire
from stage_server.step_caches import StepCaches
from wire.params import ImageParams, ModelInfo
from wire.types import Role
from wire.values import Value

_WORKFLOW, _WITH_PICTURE = "text2image", "image_conditioned"
_SIDE_MULTIPLES = 4
_CACHED_STEPS = 4


@dataclass(frozen=True, slots=True)
class WarmUp:
    """One step at a small size."""

    task: StageTask
    is_real: bool
    """Its inputs were made by the roles that make them in earnest."""


def warm_up(
    role: Role,
    workflows: Mapping[str, WorkflowSplit],
    geometry: Geometry,
    info: ModelInfo,
    dtype: torch.dtype,
    made: Mapping[Role, Outputs],
) -> WarmUp | None:
    """``made``: what other roles' warm-ups on this server made. None where nobody knows what the role would read."""
    workflow = workflows.get(_WORKFLOW) or workflows.get(_WITH_PICTURE)
    if workflow is None:
        return None
    side = _SIDE_MULTIPLES * geometry.size_multiple
    images = {"image": _grey(side)} if workflow.name == _WITH_PICTURE and role is Role.ENCODER else {}
    params = ImageParams(workflow=workflow.name, prompt="warm up", width=side, height=side, num_inference_steps=1)
    makers = [source for source, target in workflow.edges if target is role]
    is_real = all(source in made for source in makers)
    inputs = _made(makers, role, made) if is_real else _stand_ins(role, workflow, geometry, dtype, side)
    if inputs is None:
        return None
    return WarmUp(StageTask(role, workflow, complete(params, info), images, inputs), is_real)


def cached(warming: WarmUp, caches: StepCaches) -> Iterator[tuple[str, StageTask]]:
    """The same job once for each level, with steps enough to reuse something."""
    params = msgspec.structs.replace(warming.task.params, num_inference_steps=_CACHED_STEPS)
    for level, cache in caches.items():
        yield level, replace(warming.task, params=params, cache=cache)


def _made(makers: list[Role], role: Role, made: Mapping[Role, Outputs]) -> dict[str, Value]:
    return {name: value for maker in makers for name, value in made[maker].get(role, {}).items()}


def _stand_ins(
    role: Role, workflow: WorkflowSplit, geometry: Geometry, dtype: torch.dtype, side: int
) -> dict[str, Value] | None:
    """In the shapes that the configurations of denoiser and VAE tell; None where they do not tell all of them."""
    inputs: dict[str, Value] = {}
    for source, target in workflow.edges:
        for output in workflow.crossing(source, target) if target is role else ():
            if output.name == GENERATOR or output.name in ("height", "width"):
                continue  # as the parameters have them
            stand_in = geometry.stand_in(output, side, dtype)
            if stand_in is None:
                return None
            inputs[output.name] = to_wire(output.name, stand_in, _as_is)
    return inputs


def _grey(side: int) -> bytes:
    return encode(Image.new("RGB", (side, side), "grey"), "png", 0)


def _as_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor

"""A tiny job for one role, fed with what other roles made in theirs.

Of roles on other servers it is zeros, in the form of what they made there; where nobody has told that, a guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import msgspec
import torch
from PIL import Image

from stage_server.engine.base import Outputs
from stage_server.engine.forms import Forms
from stage_server.engine.geometry import Geometry
from stage_server.engine.job_check import complete
from stage_server.engine.pictures import encode
from stage_server.engine.split import GENERATOR, WorkflowSplit
from stage_server.engine.stage_task import StageTask
from stage_server.engine.tensors import as_is, to_wire
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
    is_guessed: bool
    """The form of some is what configurations tell."""
    is_told: bool
    """That of some is what other servers tell."""


def warm_up(
    role: Role,
    workflows: Mapping[str, WorkflowSplit],
    geometry: Geometry,
    info: ModelInfo,
    dtype: torch.dtype,
    made: Mapping[Role, Outputs],
    forms: Forms,
) -> WarmUp | None:
    """``made``: what other roles' warm-ups on this server made; ``forms``: of those on others. None where nobody knows
    what the role would read."""
    workflow = workflows.get(_WORKFLOW) or workflows.get(_WITH_PICTURE)
    if workflow is None:
        return None
    side = _SIDE_MULTIPLES * geometry.size_multiple
    images = {"image": _grey(side)} if workflow.name == _WITH_PICTURE and role is Role.ENCODER else {}
    params = ImageParams(workflow=workflow.name, prompt="warm up", width=side, height=side, num_inference_steps=1)
    makers = [source for source, target in workflow.edges if target is role]
    inputs: dict[str, Value] = {}
    guessed, told = list[Role](), list[Role]()
    for maker in makers:
        values = made[maker].get(role, {}) if maker in made else _told(maker, role, forms)
        if values is not None and maker not in made:
            told.append(maker)
        if values is None:
            guessed.append(maker)
            values = _guess(maker, role, workflow, geometry, dtype, side)
        if values is None:
            return None
        inputs |= values
    is_real = all(maker in made for maker in makers)
    task = StageTask(role, workflow, complete(params, info), images, inputs)
    return WarmUp(task, is_real, bool(guessed), bool(told))


def cached(warming: WarmUp, caches: StepCaches) -> Iterator[tuple[str, StageTask]]:
    """The same job once for each level, with steps enough to reuse something."""
    params = msgspec.structs.replace(warming.task.params, num_inference_steps=_CACHED_STEPS)
    for level, cache in caches.items():
        yield level, replace(warming.task, params=params, cache=cache)


def _told(maker: Role, role: Role, forms: Forms) -> dict[str, Value] | None:
    values = forms.stand_ins(maker, role)
    # A generator in zeros is none: without one the role makes its own, from the seed.
    return None if values is None else {name: value for name, value in values.items() if name != GENERATOR}


def _guess(
    maker: Role, role: Role, workflow: WorkflowSplit, geometry: Geometry, dtype: torch.dtype, side: int
) -> dict[str, Value] | None:
    """In the shapes that the configurations of denoiser and VAE tell; None where they do not tell all of them."""
    inputs: dict[str, Value] = {}
    for output in workflow.crossing(maker, role):
        if output.name == GENERATOR or output.name in ("height", "width"):
            continue  # as the parameters have them
        stand_in = geometry.stand_in(output, side, dtype)
        if stand_in is None:
            return None
        inputs[output.name] = to_wire(output.name, stand_in, as_is)
    return inputs


def _grey(side: int) -> bytes:
    return encode(Image.new("RGB", (side, side), "grey"), "png", 0)

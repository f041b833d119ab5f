"""A tiny job for one role, with stand-ins for what other roles would have made."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image

from stage_server.engine.geometry import Geometry
from stage_server.engine.job_check import complete
from stage_server.engine.pictures import encode
from stage_server.engine.split import WorkflowSplit
from stage_server.engine.stage_run import StageTask
from stage_server.engine.tensors import to_wire
from wire.params import ImageParams, ModelInfo
from wire.types import Role
from wire.values import Value

_WORKFLOW, _WITH_PICTURE = "text2image", "image_conditioned"
_SIDE_MULTIPLES = 4


def warm_up_task(
    role: Role, workflows: Mapping[str, WorkflowSplit], geometry: Geometry, info: ModelInfo, dtype: torch.dtype
) -> StageTask | None:
    """One step at a small size. None for the dit of a model that needs a picture: what it reads is not guessed."""
    workflow = workflows.get(_WORKFLOW) or workflows.get(_WITH_PICTURE)
    if workflow is None or (workflow.name == _WITH_PICTURE and role is Role.DIT):
        return None
    side = _SIDE_MULTIPLES * geometry.size_multiple
    images = {"image": _grey(side)} if workflow.name == _WITH_PICTURE else {}
    params = ImageParams(workflow=workflow.name, prompt="warm up", width=side, height=side, num_inference_steps=1)
    inputs: dict[str, Value] = {}
    if role is Role.DIT:
        made = {out.name: geometry.stand_in_embedding(out, dtype) for out in workflow.crossing(Role.ENCODER, role)}
        inputs = {name: to_wire(name, value, _as_is) for name, value in made.items() if value is not None}
    elif role is Role.DECODER:
        inputs = {"latents": to_wire("latents", geometry.stand_in_latents(side, side, dtype), _as_is)}
    return StageTask(role, workflow, complete(params, info), images, inputs)


def _grey(side: int) -> bytes:
    return encode(Image.new("RGB", (side, side), "grey"), "png", 0)


def _as_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor

"""A tiny job for one role, with stand-ins for what other roles would have made."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from stage_server.engine.geometry import Geometry
from stage_server.engine.job_check import complete
from stage_server.engine.split import WorkflowSplit
from stage_server.engine.stage_run import StageTask
from stage_server.engine.tensors import to_wire
from wire.params import ImageParams, ModelInfo
from wire.types import Role
from wire.values import Value

_WORKFLOW = "text2image"
_SIDE_MULTIPLES = 4


def warm_up_task(
    role: Role, workflows: Mapping[str, WorkflowSplit], geometry: Geometry, info: ModelInfo, dtype: torch.dtype
) -> StageTask | None:
    """One step at a small size; None for a model that needs an uploaded picture."""
    workflow = workflows.get(_WORKFLOW)
    if workflow is None:
        return None
    side = _SIDE_MULTIPLES * geometry.size_multiple
    params = ImageParams(workflow=_WORKFLOW, prompt="warm up", width=side, height=side, num_inference_steps=1)
    inputs: dict[str, Value] = {}
    if role is Role.DIT:
        made = {out.name: geometry.stand_in_embedding(out, dtype) for out in workflow.crossing(Role.ENCODER, role)}
        inputs = {name: to_wire(name, value, _as_is) for name, value in made.items() if value is not None}
    elif role is Role.DECODER:
        inputs = {"latents": to_wire("latents", geometry.stand_in_latents(side, side, dtype), _as_is)}
    return StageTask(role, workflow, complete(params, info), {}, inputs)


def _as_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor

"""What requests may ask of a model, for programs that build a form for it: sizes, steps, and which task reads what."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.api.edit_plan import INSTRUCTED, MASKED, STRENGTHS, VARIED
from gateway.api.generation import WORKFLOW
from gateway.api.sizes import SizeRules
from gateway.settings import Settings
from wire.params import Control, ModelInfo, Workflow

PARAMETERS = ("negative_prompt", "num_inference_steps", "guidance_scale", "max_sequence_length", "strength")
"""Those that some models do not read, and that are then refused."""


def abilities(model: ModelInfo, settings: Settings) -> Mapping[str, object]:
    """As JSON; a task that the model cannot do is null."""
    rules = SizeRules.of(model, settings)
    known = {workflow.name: workflow for workflow in model.workflows}
    generate = known.get(WORKFLOW) if known else Workflow(WORKFLOW, PARAMETERS[:-1])  # as ``generation.plan`` takes it
    return {
        "size": {
            "default": str(rules.default),
            "multiple": rules.multiple,
            "max_pixels": rules.max_pixels,
            "max_aspect_ratio": rules.max_aspect,
        },
        "max_n": settings.max_n,
        "upscale": model.upscaler.factor if model.upscaler is not None else None,
        "enhance": model.enhancer is not None,
        "default_steps": model.default_steps or None,
        "default_guidance": model.default_guidance,
        "quality_steps": model.quality_steps,
        "controls": [_control(control) for control in model.controls],
        "ip_adapters": list(model.ip_adapters),
        "step_caches": model.step_caches,
        "guiders": list(model.guiders),
        "guider_layers": model.guided_layers,
        "generate": _task(generate),
        "edit": _task(known.get(INSTRUCTED) or known.get(VARIED)),
        "edit_with_mask": _task(known.get(MASKED)),
    }


def _control(control: Control) -> Mapping[str, object]:
    return {"name": control.name} | ({"modes": control.modes} if control.modes else {})


def _task(workflow: Workflow | None) -> Mapping[str, object] | None:
    if workflow is None:
        return None
    told: dict[str, object] = {"parameters": [name for name in PARAMETERS if name in workflow.inputs]}
    if "image" in workflow.inputs:
        told["max_images"] = workflow.max_images
    if "strength" in workflow.inputs:
        told["default_strength"] = STRENGTHS.get(workflow.name)
    return told

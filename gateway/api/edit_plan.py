"""From a body with pictures to what the pipeline is asked for, by what the model can do with pictures."""

from __future__ import annotations

from gateway.api.edit_schema import EditBody
from gateway.api.errors import ApiError
from gateway.api.generation import (
    STEPS,
    Generation,
    check_answer,
    compose,
    controlled,
    refuse_unread,
    steps_asked,
    upscale_asked,
)
from gateway.api.sizes import Size, SizeRules
from gateway.settings import Settings
from wire.params import ModelInfo, Workflow

VARIED, MASKED, INSTRUCTED = "image2image", "inpainting", "image_conditioned"

STRENGTHS = {VARIED: 0.8, MASKED: 1.0}
"""Where the request names none. Named here, as what a family would take for itself is not known to the gateway, which
has to predict how many steps are run."""

FIDELITIES = {"low": STRENGTHS[VARIED], "high": 0.4}
"""``input_fidelity`` as the strength of image-to-image."""


def choose_workflow(model: ModelInfo, pictures: int, *, mask: bool) -> Workflow:
    """The one that takes what was sent. Raises ``ApiError`` that names what the model can do."""
    known = {workflow.name: workflow for workflow in model.workflows}
    if mask:
        wanted, what = known.get(MASKED), "edit within a mask"
    else:
        wanted, what = known.get(INSTRUCTED) or known.get(VARIED), "edit pictures"
    if wanted is None:
        takes_pictures = any("image" in workflow.inputs for workflow in model.workflows)
        raise _cannot(model, what, "mask" if mask and takes_pictures else "model")
    if pictures > wanted.max_images:
        raise _cannot(model, f"take {pictures} pictures" + (" with a mask" if mask else ""), "image")
    return wanted


def takes_implicit_mask(model: ModelInfo, pictures: int) -> bool:
    """Whether transparent parts of the one picture mean what is to be edited."""
    return pictures == 1 and any(workflow.name == MASKED for workflow in model.workflows)


def plan_edit(body: EditBody, model: ModelInfo, settings: Settings, workflow: Workflow, picture: Size) -> Generation:
    """``picture``: the size of the first one. Raises ``ApiError``."""
    check_answer(body, settings)
    name = controlled(body, model, workflow.name)
    refuse_unread(body, model, name)
    rules = SizeRules.of(model, settings)
    names_size = body.size not in (None, "auto") or body.width is not None or body.height is not None
    size = rules.choose(body.size, body.width, body.height) if names_size else rules.fit(picture)
    strength = _strength(body, model, workflow)
    _check_steps(body, model, strength)
    upscale = upscale_asked(body, model, size, settings)
    return compose(body, model, size, name, kind="image_edit", strength=strength, upscale=upscale)


def _strength(body: EditBody, model: ModelInfo, workflow: Workflow) -> float | None:
    """How far the result may leave the picture; None where the workflow knows no such thing."""
    if body.strength is not None and body.input_fidelity is not None:
        raise ApiError(
            "'input_fidelity' contradicts 'strength', which says the same more exactly; send one.",
            code="invalid_value",
            param="input_fidelity",
        )
    if "strength" in workflow.inputs:
        if body.input_fidelity is not None and workflow.name == VARIED:
            return FIDELITIES[body.input_fidelity]
        return STRENGTHS.get(workflow.name) if body.strength is None else body.strength
    if body.strength is not None:
        raise ApiError(
            f"The model '{model.name}' takes no 'strength' in {workflow.name}.",
            code="unsupported_parameter",
            param="strength",
        )
    return None


def _check_steps(body: EditBody, model: ModelInfo, strength: float | None) -> None:
    """Only the last ``strength`` of the steps is run."""
    steps = steps_asked(body, model) or model.default_steps
    if steps and strength is not None and int(steps * strength) < 1:
        raise ApiError(
            f"Of {steps} steps, a strength of {strength:g} leaves none; their product must reach 1.",
            code="invalid_value",
            param="strength" if body.strength is not None else STEPS[0],
        )


def _cannot(model: ModelInfo, what: str, param: str) -> ApiError:
    abilities = ", ".join(map(_ability, model.workflows)) or "nothing yet"
    return ApiError(
        f"The model '{model.name}' cannot {what}. It can: {abilities}.", code="unsupported_value", param=param
    )


def _ability(workflow: Workflow) -> str:
    if "image" not in workflow.inputs:
        return workflow.name
    count = "one picture" if workflow.max_images == 1 else f"up to {workflow.max_images} pictures"
    return f"{workflow.name} with {count}{' and a mask' if 'mask_image' in workflow.inputs else ''}"

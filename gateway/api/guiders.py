"""The guider of a request: as a body has it, and as the model takes it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from gateway.api.errors import ApiError
from wire.guiders import GUIDERS, MAX_LAYERS, NUMBERS, GuiderUse, fault
from wire.params import ModelInfo

FIELD = "guider"

Number = Annotated[float, Field(allow_inf_nan=False)]


class Guider(BaseModel):
    """Its name, and what it takes beside that."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=100)]
    scale: Number | None = None
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_LAYERS)] | None = None
    start: Number | None = None
    stop: Number | None = None
    rescale: Number | None = None
    momentum: Number | None = None
    eta: Number | None = None
    norm: Number | None = None
    alpha: Number | None = None
    zero_steps: int | None = None


def named(given: Any) -> Any:
    """A bare name is that guider as it is; a JSON text, which a form has, is read."""
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            return msgspec.json.decode(given)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(f"expected a name or a JSON text ({error})") from None
    if given is not None and not isinstance(given, str | dict):
        raise ValueError("expected a name or an object with a 'name'")
    return {"name": given} if isinstance(given, str) else given


def _bounds(name: str) -> dict[str, Any]:
    taken = [each.numbers[name] for each in GUIDERS.values() if name in each.numbers]
    return {
        "type": "integer" if taken[0].whole else "number",
        "minimum": min(bounds.least for bounds in taken),
        "maximum": max(bounds.most for bounds in taken),
    }


_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "enum": list(GUIDERS)},
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "enum": list(GUIDERS)},
                "layers": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": MAX_LAYERS},
                **{name: _bounds(name) for name in NUMBERS},
            },
            "required": ["name"],
            "additionalProperties": False,
        },
        {"type": "null"},
    ],
    "description": "How the prompt guides, in place of plain classifier-free guidance. GET /v1/models lists the names.",
}

AskedGuider = Annotated[Guider | None, BeforeValidator(named), WithJsonSchema(_SCHEMA)]


def asked(guider: Guider | None, model: ModelInfo, guidance_scale: float | None) -> GuiderUse | None:
    """``guidance_scale``: the request's or the model's own. Raises ``ApiError`` for what the model does not take."""
    if guider is None:
        return None
    values = guider.model_dump(exclude_none=True)
    use = GuiderUse(**{**values, "layers": tuple(values.get("layers", ()))})
    if found := fault(use):
        raise _invalid(*found)
    if use.name not in model.guiders:
        takes = f"it takes {', '.join(model.guiders)}" if model.guiders else "it takes none"
        raise _invalid("name", f"the model '{model.name}' takes no guider '{use.name}'; {takes}")
    if beyond := [layer for layer in use.layers if layer >= model.guided_layers]:
        last = model.guided_layers - 1
        raise _invalid("layers", f"the model '{model.name}' has the layers 0 to {last}, not {beyond[0]}")
    if (guidance_scale or 0.0) <= 1.0:
        told = "none" if guidance_scale is None else f"{guidance_scale:g}"
        raise _invalid("name", f"'{use.name}' needs a 'guidance_scale' above 1, not {told}")
    return use


def _invalid(parameter: str, why: str) -> ApiError:
    name = FIELD if parameter == "name" else f"{FIELD}.{parameter}"
    return ApiError(f"Invalid '{name}': {why}.", code="invalid_value", param=name)

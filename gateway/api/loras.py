"""LoRA adapters of a request: as a body has them, and as what the model's servers have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from gateway.api.errors import ApiError
from wire.params import MAX_ADAPTER_SCALE, MAX_ADAPTERS, AdapterUse, ModelInfo

NAMES = ("lora", "loras", "image_loras")
"""What requests call them, which all means the same."""


class Lora(BaseModel):
    """One of them. Its name is the operator's; where its file lies nobody else can say."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=100)]
    scale: Annotated[float, Field(ge=-MAX_ADAPTER_SCALE, le=MAX_ADAPTER_SCALE, allow_inf_nan=False)] = 1.0


def listed(given: Any) -> Any:
    """One alone as a list of one, and a bare name as one with the scale 1."""
    if given is None:
        return None
    entries = given if isinstance(given, list) else [given]
    return [{"name": entry} if isinstance(entry, str) else entry for entry in entries]


_NAME = {"type": "string", "minLength": 1, "maxLength": 100}
_SCALE = {"type": "number", "minimum": -MAX_ADAPTER_SCALE, "maximum": MAX_ADAPTER_SCALE, "default": 1}
_ONE = {
    "anyOf": [
        _NAME,
        {
            "type": "object",
            "properties": {"name": _NAME, "scale": _SCALE},
            "required": ["name"],
            "additionalProperties": False,
        },
    ]
}
_SCHEMA = {
    "anyOf": [*_ONE["anyOf"], {"type": "array", "items": _ONE, "maxItems": MAX_ADAPTERS}, {"type": "null"}],
    "description": "One or a list of {name, scale}; a bare name has the scale 1. GET /v1/models lists the names.",
}

Loras = Annotated[list[Lora] | None, Field(max_length=MAX_ADAPTERS), BeforeValidator(listed), WithJsonSchema(_SCHEMA)]


def asked(given: Sequence[tuple[str, Sequence[Lora] | None]], model: ModelInfo) -> tuple[AdapterUse, ...]:
    """Those of a request, by name, without those of scale 0. ``given``: field → value. Raises ``ApiError``."""
    sent = [(field, loras) for field, loras in given if loras]
    if not sent:
        return ()
    field, loras = sent[0]
    for other, same in sent[1:]:
        if list(same) != list(loras):
            raise ApiError(
                f"'{other}' contradicts '{field}': they mean the same; send one.", code="invalid_value", param=other
            )
    names = [lora.name for lora in loras]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ApiError(f"Invalid '{field}': '{twice[0]}' is named twice.", code="invalid_value", param=field)
    offered = {adapter.name: adapter for adapter in model.adapters}
    if unknown := [name for name in names if name not in offered]:
        known = f"it has {', '.join(sorted(offered))}" if offered else "it has none"
        raise ApiError(
            f"Invalid '{field}': the model '{model.name}' has no LoRA '{unknown[0]}'; {known}.",
            code="invalid_value",
            param=field,
        )
    uses = (AdapterUse(lora.name, offered[lora.name].digest, lora.scale) for lora in loras if lora.scale)
    return tuple(sorted(uses, key=lambda use: use.name))

"""The ControlNets and the IP-Adapter of a request: as a body has them, and as the model has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from gateway.api.errors import ApiError
from wire.controls import fault
from wire.params import MAX_CONTROL_SCALE, MAX_CONTROLS, ControlUse, IPAdapterUse, ModelInfo

FIELD, IP_ADAPTER = "control", "ip_adapter"

Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class ControlPicture(BaseModel):
    """Where it lies: exactly one of the two."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    image_url: str | None = None
    file_id: str | None = None

    @model_validator(mode="after")
    def _is_one(self) -> ControlPicture:
        if (self.image_url is None) == (self.file_id is None):
            raise ValueError("expected exactly one of 'image_url' and 'file_id'")
        return self


class ControlEntry(BaseModel):
    """One of them. Its name is the operator's."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=100)]
    image: Annotated[ControlPicture | None, BeforeValidator(lambda given: _as_url(given))] = None
    scale: Annotated[float, Field(ge=0.0, le=MAX_CONTROL_SCALE, allow_inf_nan=False)] = 1.0
    start: Share = 0.0
    end: Share = 1.0
    mode: Annotated[int, Field(ge=0)] | None = None


def _as_url(given: Any) -> Any:
    return {"image_url": given} if isinstance(given, str) else given


def listed(given: Any) -> Any:
    """One alone as a list of one; a JSON text, which a form has, is read."""
    given = _decoded(given)
    return given if given is None or isinstance(given, list) else [given]


def _decoded(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    try:
        return msgspec.json.decode(given)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"expected a JSON text ({error})") from None


_LINK = {"type": "string", "pattern": "^(https?://|data:)", "description": "https:// or data: with base64"}
_PICTURE = {
    "anyOf": [
        _LINK,
        {
            "type": "object",
            "properties": {"image_url": _LINK, "file_id": {"type": "string"}},
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
        },
    ]
}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_ONE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 100},
        "image": _PICTURE,
        "scale": {"type": "number", "minimum": 0, "maximum": MAX_CONTROL_SCALE, "default": 1},
        "start": {**_SHARE, "default": 0},
        "end": {**_SHARE, "default": 1},
        "mode": {"type": "integer", "minimum": 0},
    },
    "required": ["name"],
    "additionalProperties": False,
}
_SCHEMA: dict[str, Any] = {
    "anyOf": [_ONE, {"type": "array", "items": _ONE, "maxItems": MAX_CONTROLS}, {"type": "null"}],
    "description": "ControlNets, each with the picture that steers. GET /v1/models lists the names.",
}

ControlEntries = Annotated[
    list[ControlEntry] | None, Field(max_length=MAX_CONTROLS), BeforeValidator(listed), WithJsonSchema(_SCHEMA)
]


class IPAdapterEntry(BaseModel):
    """What reads a picture as a prompt. Its name is the operator's."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=100)]
    image: Annotated[ControlPicture | None, BeforeValidator(lambda given: _as_url(given))] = None
    scale: Annotated[float, Field(ge=0.0, le=MAX_CONTROL_SCALE, allow_inf_nan=False)] = 1.0


_ADAPTER_SCHEMA: dict[str, Any] = {
    "anyOf": [{**_ONE, "properties": {name: _ONE["properties"][name] for name in ("name", "image", "scale")}},
              {"type": "null"}],
    "description": "A picture as a prompt, and the IP-Adapter that reads it. GET /v1/models lists the names.",
}  # fmt: skip

AskedIPAdapter = Annotated[
    IPAdapterEntry | None, BeforeValidator(lambda given: _decoded(given)), WithJsonSchema(_ADAPTER_SCHEMA)
]


def adapter_asked(entry: IPAdapterEntry | None, model: ModelInfo) -> IPAdapterUse | None:
    """Raises ``ApiError`` for one that the model does not have."""
    if entry is None:
        return None
    if entry.name not in model.ip_adapters:
        known = f"it has {', '.join(model.ip_adapters)}" if model.ip_adapters else "it has none"
        param = f"{IP_ADAPTER}.name"
        raise ApiError(
            f"Invalid '{param}': the model '{model.name}' has no IP-Adapter '{entry.name}'; {known}.",
            code="invalid_value",
            param=param,
        )
    return IPAdapterUse(entry.name, entry.scale)


def guided(use: IPAdapterUse | None, guidance_scale: float | None) -> IPAdapterUse | None:
    """diffusers' blocks fail without guidance. ``guidance_scale``: the request's or the model's own. Raises
    ``ApiError``."""
    if use is not None and (guidance_scale or 0.0) <= 1.0:
        raise ApiError(
            f"Invalid '{IP_ADAPTER}': it needs a 'guidance_scale' above 1.", code="invalid_value", param=IP_ADAPTER
        )
    return use


def asked(entries: Sequence[ControlEntry] | None, model: ModelInfo) -> tuple[ControlUse, ...]:
    """Raises ``ApiError`` for what the model does not have."""
    uses = tuple(ControlUse(each.name, each.scale, each.start, each.end, each.mode) for each in entries or ())
    if found := fault(uses, model):
        index, parameter, why = found
        param = f"{FIELD}.{index}.{parameter}"
        raise ApiError(f"Invalid '{param}': {why}.", code="invalid_value", param=param)
    return uses

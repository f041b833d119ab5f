"""The body of ``POST /v1/images/generations``, strictly typed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from gateway.api.controls import AskedIPAdapter, ControlEntries
from gateway.api.guiders import AskedGuider
from gateway.api.loras import Loras
from wire.types import MAX_PROMPT, MAX_UPSCALE

Text = Annotated[str, Field(max_length=MAX_PROMPT)]
Steps = Annotated[int, Field(ge=1, le=200)]
Guidance = Annotated[float, Field(ge=0, le=50, allow_inf_nan=False)]
Pixels = Annotated[int, Field(ge=1)]

MAX_SEED = 2**63 - 1
MOST = {"maximum": 10}
SIZE = {"pattern": "^(auto|[1-9][0-9]{0,5}x[1-9][0-9]{0,5})$"}
"""For the OpenAPI document alone: what breaks them is refused with better words elsewhere."""

RANDOM_SEED = -1
"""As other servers have it; the same as none."""

NOT_SERVED = frozenset(
    {
        "complexity",
        "extra_params",
        "flow_shift",
        "frame_count",
        "frame_duration_ms",
        "markup",
        "scheduler",
        "strength",
        "svg",
        "true_cfg_scale",
    }
)
"""Fields that clients of other servers know, and that no model takes here: refused by name when set."""


def _not_blank(prompt: str) -> str:
    if not prompt.strip():
        raise PydanticCustomError("blank", "expected more than blanks")
    return prompt


class GenerationBody(BaseModel):
    """OpenAI's fields and the extensions of the open servers. ``null`` means the same as leaving the field out."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        json_schema_extra={"dependentRequired": {"width": ["height"], "height": ["width"]}},
    )

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT), AfterValidator(_not_blank)]
    model: Annotated[str, Field(max_length=256)] | None = None
    n: (
        Annotated[
            int, Field(ge=1, description="Images; at most 10, or what the server allows.", json_schema_extra=MOST)
        ]
        | None
    ) = None
    size: Annotated[str, Field(description="'auto' or WIDTHxHEIGHT in pixels.", json_schema_extra=SIZE)] | None = None
    width: Pixels | None = None
    height: Pixels | None = None
    response_format: Literal["b64_json", "url", "base64"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=RANDOM_SEED, le=MAX_SEED, description="-1: random.")] | None = None
    batching: Literal["exact", "fast"] | None = None
    step_cache: Annotated[str, Field(max_length=32, description="'none', or a level that the model has.")] | None = None
    num_inference_steps: Steps | None = None
    steps: Steps | None = None
    step: Steps | None = None
    guidance_scale: Guidance | None = None
    cfg_scale: Guidance | None = None
    guidance: Guidance | None = None
    control: ControlEntries = None
    ip_adapter: AskedIPAdapter = None
    guider: AskedGuider = None
    negative_prompt: Text | None = None
    lora: Loras = None
    loras: Loras = None
    image_loras: Loras = None
    upscale: (
        Annotated[int, Field(ge=2, le=MAX_UPSCALE, description="Factor by which an upscaler makes the picture larger.")]
        | None
    ) = None
    enhance: Annotated[bool | None, Field(description="Have the prompt written anew by the model's enhancer.")] = None
    max_sequence_length: Annotated[int, Field(ge=1, le=32_000)] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = None
    style: Literal["vivid", "natural"] | None = None
    moderation: Literal["auto", "low"] | None = None
    user: Text | None = None
    safety_identifier: Text | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    run_async: Annotated[bool | None, Field(alias="async", description="Answer 202 with a job at once.")] = None
    webhook_url: Annotated[str, Field(description="Told when the job ends.")] | None = None

    @classmethod
    def field_names(cls) -> frozenset[str]:
        """As clients write them."""
        return frozenset(each.alias or name for name, each in cls.model_fields.items())

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, body: object) -> object:
        if not isinstance(body, dict):
            return body
        return {name: value for name, value in body.items() if value is not None or name not in NOT_SERVED}

"""From a validated body to what the pipeline is asked for, by the rules of the model that is meant."""

from __future__ import annotations

import secrets
from typing import TypeVar

import msgspec

from gateway.api import controls, guiders, loras
from gateway.api.errors import ApiError
from gateway.api.schema import MAX_SEED, RANDOM_SEED, GenerationBody
from gateway.api.sizes import Size, SizeRules
from gateway.settings import Settings
from wire.controls import workflow_of
from wire.guiders import GUIDERS, GuiderUse
from wire.params import ImageParams, ModelInfo
from wire.record import record

WORKFLOW = "text2image"
STEPS = ("num_inference_steps", "steps", "step")
GUIDANCE = ("guidance_scale", "cfg_scale", "guidance")
QUALITIES = ("low", "medium", "high", "xhigh", "max")
"""What a response may call its quality; clients validate it."""
OLD_QUALITIES = {"standard": "medium", "hd": "high"}
"""OpenAI's names for the qualities of its older models."""
NO_STEP_CACHE = "none"
"""The level at which every step is computed."""
URL_MODELS = ("dall-e-2", "dall-e-3")
"""Clients that name these expect urls unless they ask otherwise."""

Number = TypeVar("Number", int, float)


@record(frozen=True, slots=True)
class Generation:
    """A request that the model can serve, and how its answer is to look."""

    model: str
    """Served model id."""
    images: tuple[ImageParams, ...]
    size: Size
    output_format: str
    as_url: bool
    seeded: bool
    """The caller named the seed."""
    exact: bool
    """Its pictures are those of a run alone, byte for byte; otherwise company may change their last bits."""
    kind: str = "image_generation"
    """``image_generation`` or ``image_edit``: what events are called after."""
    requested_model: str | None = None
    quality: str | None = None
    """As asked for, in the words of today; None if something else came of it."""
    safety_identifier: str | None = None
    stream: bool = False
    as_job: bool = False
    """Answered at once, with a job."""
    webhook_url: str | None = None
    steps: int = 0
    """Named, or the model's own."""
    guidance: float | None = None
    token_side: int = 16
    """Edge of the square of pixels that one image token stands for."""
    uploaded_tokens: int = 0
    """Image tokens of the pictures that were sent."""
    enhance: bool = False
    """Its prompt is written anew before it is encoded."""

    @property
    def final_size(self) -> Size:
        """Of the finished pictures; ``size`` is that at which they are denoised."""
        factor = self.images[0].upscale or 1
        return Size(self.size.width * factor, self.size.height * factor)

    @property
    def seed(self) -> int:
        """Seed of the first image."""
        return self.images[0].seed


def plan(body: GenerationBody, model: ModelInfo, settings: Settings) -> Generation:
    """One set of parameters per image, with seeds counted up from the request's. Raises ``ApiError``."""
    check_answer(body, settings)
    if model.workflows and WORKFLOW not in {workflow.name for workflow in model.workflows}:
        raise ApiError(
            f"The model '{model.name}' makes no pictures from text alone.", code="unsupported_value", param="model"
        )
    workflow = controlled(body, model, WORKFLOW)
    refuse_unread(body, model, workflow)
    size = SizeRules.of(model, settings).choose(body.size, body.width, body.height)
    return compose(body, model, size, workflow, upscale=upscale_asked(body, model, size, settings))


def controlled(body: GenerationBody, model: ModelInfo, workflow: str) -> str:
    """What ``workflow`` is called with the body's ControlNets and IP-Adapter, if it has any. Raises ``ApiError``."""
    adapter = controls.adapter_asked(body.ip_adapter, model)
    name = workflow_of(controls.asked(body.control, model), workflow, adapted=adapter is not None)
    if name != workflow and model.workflow(name) is None:
        known = ", ".join(each.name for each in model.workflows)
        raise ApiError(
            f"The model '{model.name}' does no {name}; it does {known}.",
            code="unsupported_value",
            param=controls.FIELD if body.control else controls.IP_ADAPTER,
        )
    return name


def upscale_asked(body: GenerationBody, model: ModelInfo, size: Size, settings: Settings) -> int:
    """The factor; 0: none. Raises ``ApiError`` where nobody would do it."""
    factor, upscaler = body.upscale, model.upscaler
    if factor is None:
        return 0
    if upscaler is None:
        raise ApiError(
            f"The model '{model.name}' has no stage 'upscaler' here, which 'upscale' needs. Its operator adds one by "
            "starting a stage server for it with --role upscaler --upscaler FOLDER_OR_HUB_ID.",
            code="unsupported_parameter",
            param="upscale",
        )
    if factor != upscaler.factor:
        raise ApiError(
            f"Invalid 'upscale': the upscaler of '{model.name}' makes pictures {upscaler.factor} times as large, "
            f"so it may be {upscaler.factor}, not {factor}.",
            code="unsupported_value",
            param="upscale",
        )
    if (pixels := size.width * size.height * factor**2) > settings.max_upscaled_pixels:
        raise ApiError(
            f"Invalid 'upscale': {size} becomes {pixels} pixels, of which {settings.max_upscaled_pixels} are allowed; "
            "ask for a smaller 'size'.",
            code="invalid_value",
            param="upscale",
        )
    return factor


def enhance_asked(body: GenerationBody, model: ModelInfo) -> bool:
    """Raises ``ApiError`` where nobody would do it."""
    if body.enhance and model.enhancer is None:
        raise ApiError(
            f"The model '{model.name}' has no stage 'enhancer' here, which 'enhance' needs. Its operator adds one by "
            "starting a stage server for it with --role enhancer --enhancer FOLDER_OR_HUB_ID.",
            code="unsupported_parameter",
            param="enhance",
        )
    return bool(body.enhance)


def check_answer(body: GenerationBody, settings: Settings) -> None:
    """What no model could answer. Raises ``ApiError``."""
    _refuse_half_streams(body)
    _refuse_half_jobs(body)
    _refuse_appearance(body)
    if (body.n or 1) > settings.max_n:
        raise ApiError(f"Invalid 'n': at most {settings.max_n} is allowed.", code="integer_above_max_value", param="n")


def refuse_unread(body: GenerationBody, model: ModelInfo, workflow: str) -> None:
    """A parameter that the model's blocks do not read would silently change nothing. Raises ``ApiError``."""
    for reads in (candidate.inputs for candidate in model.workflows if candidate.name == workflow):
        for names in (("negative_prompt",), ("max_sequence_length",), STEPS, GUIDANCE):
            sent = _sent(body, names)
            if sent and names[0] not in reads:
                raise ApiError(
                    f"The model '{model.name}' takes no '{sent[0]}'.", code="unsupported_parameter", param=sent[0]
                )


def compose(
    body: GenerationBody,
    model: ModelInfo,
    size: Size,
    workflow: str,
    *,
    kind: str = "image_generation",
    strength: float | None = None,
    upscale: int = 0,
) -> Generation:
    """What ``body`` asks for, once it is known to be possible. Raises ``ApiError``."""
    seed = None if body.seed == RANDOM_SEED else body.seed
    steps, scale = steps_asked(body, model), agreed(body, GUIDANCE, float)
    guidance = model.default_guidance if scale is None else scale
    guider = guiders.asked(body.guider, model, guidance)
    params = ImageParams(
        workflow=workflow,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or None,
        width=size.width,
        height=size.height,
        num_inference_steps=steps,
        guidance_scale=scale,
        strength=strength,
        max_sequence_length=body.max_sequence_length,
        output_format=body.output_format or "png",
        output_compression=100 if body.output_compression is None else body.output_compression,
        previews=body.partial_images or 0,
        step_cache=step_cache_asked(body, model, guider),
        upscale=upscale,
        adapters=loras.asked([(name, getattr(body, name)) for name in loras.NAMES], model),
        guider=guider,
        controls=controls.asked(body.control, model),
        ip_adapter=controls.guided(controls.adapter_asked(body.ip_adapter, model), guidance),
    )
    return Generation(
        model=model.name,
        images=tuple(msgspec.structs.replace(params, seed=one) for one in _seeds(seed, body.n or 1)),
        size=size,
        output_format=params.output_format,
        as_url=_wants_url(body),
        seeded=seed is not None,
        exact=body.batching == "exact" or (body.batching is None and seed is not None) or _is_alone(guider),
        kind=kind,
        requested_model=body.model,
        quality=_quality_told(body, model, steps),
        safety_identifier=body.safety_identifier,
        stream=bool(body.stream),
        as_job=bool(body.run_async),
        webhook_url=body.webhook_url,
        steps=steps or model.default_steps,
        guidance=guidance,
        token_side=model.size_multiple,
        enhance=enhance_asked(body, model),
    )


def step_cache_asked(body: GenerationBody, model: ModelInfo, guider: GuiderUse | None) -> str:
    """A level of the model's; empty: none. Raises ``ApiError``."""
    level = body.step_cache or NO_STEP_CACHE
    if level == NO_STEP_CACHE:
        return ""
    if level not in model.step_caches:
        levels = ", ".join((NO_STEP_CACHE, *model.step_caches))
        raise ApiError(
            f"The model '{model.name}' has no 'step_cache' {level!r}; it has: {levels}.",
            code="unsupported_value",
            param="step_cache",
        )
    if guider is not None and _is_alone(guider):
        raise ApiError(
            f"'step_cache' and the guider '{guider.name}' exclude each other: it changes layers that are left out.",
            code="invalid_value",
            param="step_cache",
        )
    if body.control or body.ip_adapter is not None:
        other = controls.FIELD if body.control else controls.IP_ADAPTER
        raise ApiError(
            f"'step_cache' and '{other}' exclude each other: what steers might be left out.",
            code="invalid_value",
            param="step_cache",
        )
    return level


def _is_alone(guider: GuiderUse | None) -> bool:
    """It changes layers that others compute with: its jobs have their device alone whatever was asked for."""
    return guider is not None and GUIDERS[guider.name].changes_layers


def steps_asked(body: GenerationBody, model: ModelInfo) -> int | None:
    """Steps that were named, or stand for the quality that was named. Raises ``ApiError``."""
    named = agreed(body, STEPS, int)
    return model.quality_steps.get(_quality(body)) if named is None else named


def _quality(body: GenerationBody) -> str:
    return OLD_QUALITIES.get(body.quality or "", body.quality or "")


def _quality_told(body: GenerationBody, model: ModelInfo, steps: int | None) -> str | None:
    """What the steps stand for; where the model tells no qualities apart, what a response may repeat."""
    if not model.quality_steps:
        return body.quality if body.quality in QUALITIES else None
    told = _quality(body)
    return told if model.quality_steps.get(told, 0) == steps else None


def _seeds(first: int | None, count: int) -> list[int]:
    """``first``, ``first + 1``, … below 2**63, where they begin again at 0; random without ``first``."""
    start = secrets.randbits(63) if first is None else first
    return [(start + index) % (MAX_SEED + 1) for index in range(count)]


def _sent(body: GenerationBody, names: tuple[str, ...]) -> list[str]:
    """Those of ``names`` that the client gave a value. An empty text says nothing."""
    return [name for name in names if getattr(body, name) not in (None, "")]


def agreed(body: GenerationBody, names: tuple[str, ...], kind: type[Number]) -> Number | None:
    """The one value that the client sent under any of ``names``, which are synonyms."""
    sent = _sent(body, names)
    values = {kind(getattr(body, name)) for name in sent}
    if len(values) > 1:
        raise ApiError(
            f"'{sent[1]}' contradicts '{sent[0]}': they mean the same; send one.", code="invalid_value", param=sent[1]
        )
    return values.pop() if values else None


def _wants_url(body: GenerationBody) -> bool:
    if body.response_format is None:
        return body.model in URL_MODELS
    return body.response_format == "url"


def _refuse_half_streams(body: GenerationBody) -> None:
    if body.partial_images and not body.stream:
        raise ApiError(
            "'partial_images' needs 'stream': true: other answers hold finished pictures alone.",
            code="invalid_value",
            param="partial_images",
        )
    if body.stream and body.response_format == "url":
        raise ApiError(
            "'response_format' must be b64_json in a stream: events carry no urls.",
            code="invalid_value",
            param="response_format",
        )


def _refuse_half_jobs(body: GenerationBody) -> None:
    if body.run_async and body.stream:
        raise ApiError(
            "'async' and 'stream' exclude each other: a job is asked how far it is.",
            code="invalid_value",
            param="async",
        )
    if body.webhook_url is not None and not body.run_async:
        raise ApiError(
            "'webhook_url' needs 'async': true: other answers come on the connection of the request.",
            code="invalid_value",
            param="webhook_url",
        )


def _refuse_appearance(body: GenerationBody) -> None:
    output_format = body.output_format or "png"
    if body.background == "transparent":
        if output_format == "jpeg":
            raise ApiError("JPEG has no transparent 'background'.", code="invalid_value", param="background")
        raise ApiError(
            "Pictures are opaque here: 'background' may be 'opaque' or 'auto'.",
            code="unsupported_value",
            param="background",
        )
    if output_format == "png" and body.output_compression not in (None, 100):
        raise ApiError(
            "PNG is lossless: 'output_compression' below 100 needs 'output_format' jpeg or webp.",
            code="invalid_value",
            param="output_compression",
        )

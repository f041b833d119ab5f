"""What one stage job is asked to do, and what a model says it can do."""

from __future__ import annotations

from typing import Annotated

import msgspec

from wire.bounded import Count, Detail, Guidance, Name, Positive
from wire.guiders import GuiderUse
from wire.references import References
from wire.types import MAX_UPSCALE, OPTIONAL, Role

MAX_ADAPTERS = 8
"""Of one image."""
MAX_ADAPTERS_OFFERED = 1024
"""By one server."""
MAX_ADAPTER_SCALE = 10.0
"""Either way."""
MAX_CONTROLS = 4
"""Of one image."""
MAX_CONTROLS_OFFERED = 64
"""By one server."""
MAX_CONTROL_SCALE = 10.0
MAX_ENHANCED_TOKENS = 4096
"""That an enhancer may be allowed to write."""
MAX_STEP_CACHES = 16
"""Levels of one model."""
CHARACTERS_PER_TOKEN = 4
"""Of English, about."""

AdapterName = Annotated[str, msgspec.Meta(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Digest = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[0-9a-f]+$")]
StepCacheLevel = Annotated[str, msgspec.Meta(max_length=32, pattern=r"^[a-z0-9-]*$")]
AdapterScale = Annotated[float, msgspec.Meta(ge=-MAX_ADAPTER_SCALE, le=MAX_ADAPTER_SCALE)]


class Adapter(msgspec.Struct, frozen=True):
    """A LoRA that a server's operator allows. Where its file lies stays on the server."""

    name: AdapterName
    """As clients name it."""
    digest: Digest
    """Of the file: two servers may have different ones under one name, and one picture must not get both."""
    roles: Annotated[tuple[Role, ...], msgspec.Meta(max_length=len(Role))]
    """Whose weights it changes: jobs of these go to servers that have it."""

    @property
    def key(self) -> str:
        return f"{self.name}@{self.digest}"


class AdapterUse(msgspec.Struct, frozen=True):
    """An adapter that one image is made with."""

    name: AdapterName
    digest: Digest
    scale: AdapterScale
    """Of what it adds; on top of the ``alpha / rank`` of its file."""


class Control(msgspec.Struct, frozen=True, omit_defaults=True):
    """A ControlNet that a model's operator allows: part of the dit, and of the model's key."""

    name: AdapterName
    """As clients name it."""
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Its weights by the denoiser's: about what it adds to the time of each pass."""
    modes: Count = 0
    """Kinds of pictures between which a request chooses by number; 0: it knows one."""
    alone: bool = False
    """It takes no others beside it, but several pictures."""


class ControlUse(msgspec.Struct, frozen=True, omit_defaults=True):
    """A ControlNet that one image is made with. Its picture is ``control_image``, or ``control_image_1``, …"""

    name: AdapterName
    scale: Annotated[float, msgspec.Meta(ge=0, le=MAX_CONTROL_SCALE)] = 1.0
    start: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    end: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """Share of the steps from which on, and until which, it steers."""
    mode: Count | None = None


class Brought(msgspec.Struct, frozen=True):
    """A model for an optional stage. Where its files lie stays on the server."""

    name: Name
    """For people: the last part of its folder's, or of its id."""
    digest: Digest
    """Of all that decides what it makes: servers of one model may have different ones, and no picture may depend on
    which it meets."""

    @property
    def key(self) -> str:
        return f"{type(self).__name__.lower()} {self.name}@{self.digest}"


class Upscaler(Brought, frozen=True):
    """What makes finished pictures larger."""

    factor: Annotated[int, msgspec.Meta(ge=2, le=MAX_UPSCALE)]
    """By which width and height grow."""


class Enhancer(Brought, frozen=True):
    """What writes prompts anew. Its digest is of its instruction, too."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_ENHANCED_TOKENS)]
    """That it writes at most."""

    def tokens(self, prompt: str) -> int:
        """About those that it reads, and at most writes: what its time is predicted by."""
        return len(prompt) // CHARACTERS_PER_TOKEN + self.max_tokens


class IPAdapterUse(msgspec.Struct, frozen=True):
    """A picture as a prompt: ``ip_adapter_image``, and what reads it."""

    name: AdapterName
    scale: Annotated[float, msgspec.Meta(ge=0, le=MAX_CONTROL_SCALE)] = 1.0


class ImageParams(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Parameters of one image, as every stage of its graph sees them. ``None`` means the model's own default.

    The gateway blanks ``prompt`` and ``negative_prompt`` for the stages that do not read them.
    """

    workflow: str = "text2image"
    prompt: str = ""
    negative_prompt: str | None = None
    height: int = 0
    """Pixels."""
    width: int = 0
    """Pixels."""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    """Seed of this image: the request's seed plus the image's index."""
    strength: float | None = None
    """Image-to-image only, 0 to 1."""
    max_sequence_length: int | None = None
    """Tokens of the prompt."""
    num_frames: int | None = None
    """Of a video."""
    output_format: str = "png"
    """``png``, ``jpeg`` or ``webp``."""
    output_compression: int = 100
    """0 to 100: JPEG and WebP quality; ignored for PNG."""
    previews: Count = 0
    """Intermediate pictures that are asked for; see ``wire.previews``."""
    adapters: Annotated[tuple[AdapterUse, ...], msgspec.Meta(max_length=MAX_ADAPTERS)] = ()
    """By name, each once. The gateway leaves out those that do not concern the stage."""
    upscale: Annotated[int, msgspec.Meta(ge=0, le=MAX_UPSCALE)] = 0
    """Factor by which an upscaler makes the picture larger than ``width`` and ``height`` after it was decoded: the
    decoder leaves pixels for it instead of a file. 0: none does. The gateway tells the decoder and the upscaler."""
    guider: GuiderUse | None = None
    """For the dit alone: which takes the place of the model's own."""
    controls: Annotated[tuple[ControlUse, ...], msgspec.Meta(max_length=MAX_CONTROLS)] = ()
    ip_adapter: IPAdapterUse | None = None
    step_cache: StepCacheLevel = ""
    """One of ``ModelInfo.step_caches``; empty: every step is computed."""


class Workflow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One task that a model can do, as read off its blocks."""

    name: str
    """``text2image``, ``image2image``, ``inpainting``, …"""
    inputs: tuple[str, ...]
    """The ``ImageParams`` fields and image names that the blocks read; the gateway refuses the others."""
    edges: tuple[tuple[Role, Role], ...] = (
        (Role.ENCODER, Role.DIT),
        (Role.DIT, Role.DECODER),
    )
    """Which role's output some later role reads; (encoder, decoder) only where a value skips the dit."""
    max_images: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    """Pictures that it takes, where it takes any; the mask not counted."""
    references: References | None = None
    """What becomes of these pictures; None: they get the size of the answer, and only the autoencoder reads them."""
    encoder_inputs: tuple[str, ...] = ()
    """Those of ``inputs`` that the encoder's outputs depend on. Empty, as from older servers: not known."""


class ModelInfo(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A model as a stage server serves it."""

    name: Name
    """The id that clients name."""
    key: Name
    """``wire.types.ModelKey``."""
    family: str
    """The modular pipeline's ``model_name``, such as ``z-image``."""
    dtype: str
    revisions: dict[str, str] = {}
    """Component name → revision or config digest."""
    workflows: tuple[Workflow, ...] = ()
    size_multiple: Positive = 16
    """Height and width must be multiples of it, in pixels."""
    default_size: tuple[Positive, Positive] = (1024, 1024)
    """Width, height in pixels."""
    max_pixels: Count = 0
    """0: no limit known."""
    default_steps: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 0
    """``num_inference_steps`` when a request names none."""
    default_guidance: Guidance | None = None
    quality_steps: dict[str, Positive] = {}
    """``num_inference_steps`` when a request names a quality and no steps."""
    attention: Name = ""
    """Attention backend of the denoiser; empty: the library's own choice. Part of the key, as it may change bytes."""
    compiled: bool = False
    """Whether this server computes fast requests with compiled code."""
    adapters: Annotated[tuple[Adapter, ...], msgspec.Meta(max_length=MAX_ADAPTERS_OFFERED)] = ()
    """In a ``Hello``: those that this server allows."""
    formats: Annotated[dict[Name, Name], msgspec.Meta(max_length=32)] = {}
    """Component → format of its weights, where they are quantised. Part of the key likewise."""
    upscaler: Upscaler | None = None
    """In a ``Hello``: the one that this server has. No part of the key: servers without one serve the same model."""
    guiders: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)] = ()
    """That requests may name."""
    guided_layers: Count = 0
    """Of the denoiser, among which guiders may be told to choose."""
    controls: Annotated[tuple[Control, ...], msgspec.Meta(max_length=MAX_CONTROLS_OFFERED)] = ()
    ip_adapters: Annotated[tuple[AdapterName, ...], msgspec.Meta(max_length=MAX_CONTROLS_OFFERED)] = ()
    """As clients name them."""
    step_caches: Annotated[dict[StepCacheLevel, Detail], msgspec.Meta(max_length=MAX_STEP_CACHES)] = {}
    """Level → how its steps reuse what earlier ones computed, for people. Part of the key likewise."""
    enhancer: Enhancer | None = None
    """In a ``Hello``: the one that this server has; no part of the key, as with ``upscaler``."""

    @property
    def brought(self) -> dict[Role, Upscaler | Enhancer]:
        """What there is for optional stages."""
        found = {role: getattr(self, role.value) for role in OPTIONAL}
        return {role: each for role, each in found.items() if each is not None}

    def workflow(self, name: str) -> Workflow | None:
        return next((workflow for workflow in self.workflows if workflow.name == name), None)

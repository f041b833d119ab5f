"""What one stage job is asked to do, and what a model says it can do."""

from __future__ import annotations

from typing import Annotated

import msgspec

from wire.bounded import Count, Guidance, Name, Positive
from wire.references import References
from wire.types import Role


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
    output_format: str = "png"
    """``png``, ``jpeg`` or ``webp``."""
    output_compression: int = 100
    """0 to 100: JPEG and WebP quality; ignored for PNG."""
    previews: Count = 0
    """Intermediate pictures that are asked for; see ``wire.previews``."""


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

    def workflow(self, name: str) -> Workflow | None:
        return next((workflow for workflow in self.workflows if workflow.name == name), None)

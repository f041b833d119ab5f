"""Cost profiles as the emulated engine reads them. The file format is described in docs/profiles.md."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from stage_server.engine.base import LoadError
from wire.params import ImageParams, StepCacheLevel
from wire.references import References
from wire.types import MAX_UPSCALE, REQUIRED, Role
from wire.values import DTYPE_BYTES

SCHEMA = 1
GIGABYTE = 10**9


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base: a key that the format does not know is an error, not a surprise later."""


class ModelShape(_Section, frozen=True, kw_only=True):
    name: str
    default_steps: int
    default_guidance: float
    guidance_passes: int
    text_tokens: int
    pixels_per_token: int
    latent_pixels: int
    latent_frames: int = 1
    size_multiple: int
    references: References | None = None
    """Of edits (``image_conditioned``); the format is that of the wire protocol."""

    def tokens(self, params: ImageParams) -> int:
        side = self.pixels_per_token
        return -(-params.height // side) * -(-params.width // side) * self.latent_frames

    def extents(self, params: ImageParams) -> dict[str, int]:
        """What the names in a tensor's shape stand for."""
        return {
            "text_tokens": self.text_tokens,
            "latent_height": params.height // self.latent_pixels,
            "latent_width": params.width // self.latent_pixels,
            "latent_frames": self.latent_frames,
        }


class Device(_Section, frozen=True, kw_only=True, rename={"device_class": "class"}):
    device_class: str
    memory_gb: float
    precision: str


class TensorSpec(_Section, frozen=True, kw_only=True):
    port: Literal["dit", "decoder"]
    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def resolve(self, extents: dict[str, int]) -> tuple[int, ...]:
        return tuple(extent if isinstance(extent, int) else extents[extent] for extent in self.shape)

    def nbytes(self, extents: dict[str, int]) -> int:
        return prod(self.resolve(extents)) * DTYPE_BYTES[self.dtype]


class RoleCosts(_Section, frozen=True, kw_only=True):
    fixed_seconds: float
    weights_gb: float
    activation_gb: float
    load_seconds: float
    batch_marginal: tuple[tuple[float, float], ...]
    outputs: tuple[TensorSpec, ...] = ()

    @property
    def weight_bytes(self) -> int:
        return int(self.weights_gb * GIGABYTE)

    @property
    def activation_bytes(self) -> int:
        return int(self.activation_gb * GIGABYTE)

    def marginal(self, tokens: int) -> float:
        """What a further job adds that computes together with others, in jobs: linear between the given points, flat
        outside."""
        points = self.batch_marginal
        marginal = points[0][1] if tokens <= points[0][0] else points[-1][1]
        for (left, low), (right, high) in pairwise(points):
            if left <= tokens <= right:
                marginal = low + (high - low) * (tokens - left) / (right - left)
        return marginal


class EncoderCosts(RoleCosts, frozen=True, kw_only=True):
    seconds_per_text_token: float
    seconds_per_image_pixel: float


class DitCosts(RoleCosts, frozen=True, kw_only=True):
    seconds_per_token: float
    seconds_per_token_squared: float
    step_caches: dict[StepCacheLevel, Annotated[float, msgspec.Meta(gt=0, le=2)]] = {}
    """Level → share of the time that jobs take which compute every step."""


class DecoderCosts(RoleCosts, frozen=True, kw_only=True):
    seconds_per_pixel: float


class EnhancerCosts(RoleCosts, frozen=True, kw_only=True):
    seconds_per_token: float
    """Of those that it reads, and those that it may write."""


class UpscalerCosts(RoleCosts, frozen=True, kw_only=True):
    seconds_per_pixel: float
    """Of the picture that it is given."""
    factor: Annotated[int, msgspec.Meta(ge=2, le=MAX_UPSCALE)]
    """By which width and height grow."""


class Profile(_Section, frozen=True, kw_only=True):
    schema: int
    source: str
    model: ModelShape
    device: Device
    encoder: EncoderCosts
    dit: DitCosts
    decoder: DecoderCosts
    upscaler: UpscalerCosts | None = None
    enhancer: EnhancerCosts | None = None

    def costs(self, role: Role) -> RoleCosts:
        """Of one of ``roles``."""
        found: RoleCosts = getattr(self, role.value)
        return found

    @property
    def roles(self) -> tuple[Role, ...]:
        """That the model has."""
        return tuple(role for role in Role if getattr(self, role.value) is not None)

    def steps(self, params: ImageParams) -> int:
        """Denoising steps that an image takes; image-to-image skips the first ``1 - strength`` of them."""
        steps = params.num_inference_steps or self.model.default_steps
        return steps if params.strength is None else max(1, round(steps * params.strength))

    def step_seconds(self, params: ImageParams, more_tokens: int = 0) -> float:
        """One denoising step of one image; ``more_tokens`` are in its sequence for pictures that were uploaded."""
        tokens, dit = self.model.tokens(params) + more_tokens, self.dit
        scale = self.model.default_guidance if params.guidance_scale is None else params.guidance_scale
        passes = self.model.guidance_passes if scale > 1 else 1
        once = dit.fixed_seconds + dit.seconds_per_token * tokens + dit.seconds_per_token_squared * tokens**2
        return passes * once * dit.step_caches.get(params.step_cache, 1.0)

    def encode_seconds(self, image_pixels: int, more_tokens: int = 0) -> float:
        """One prompt, with ``more_tokens`` of pictures in it, and ``image_pixels`` of uploaded pictures."""
        text = self.encoder.seconds_per_text_token * (self.model.text_tokens + more_tokens)
        return self.encoder.fixed_seconds + text + self.encoder.seconds_per_image_pixel * image_pixels

    def decode_seconds(self, params: ImageParams) -> float:
        return self.decoder.fixed_seconds + self.decoder.seconds_per_pixel * params.height * params.width

    def upscale_seconds(self, params: ImageParams) -> float:
        """One picture of the size that the decoder made."""
        costs = self.upscaler
        if costs is None:
            raise ValueError("the profile has no section [upscaler]")
        return costs.fixed_seconds + costs.seconds_per_pixel * params.height * params.width

    def enhance_seconds(self, tokens: int) -> float:
        costs = self.enhancer
        if costs is None:
            raise ValueError("the profile has no section [enhancer]")
        return costs.fixed_seconds + costs.seconds_per_token * tokens

    def digest(self) -> str:
        """Equal for profiles of one model on different devices: their stages can be mixed. Optional stages are no
        part of the model."""
        outputs = [self.costs(role).outputs for role in REQUIRED]
        levels = [sorted(self.dit.step_caches)] if self.dit.step_caches else []  # a request's must be everywhere
        content = msgspec.json.encode([self.model, self.device.precision, outputs, *levels])
        return hashlib.sha256(content).hexdigest()[:12]


def load_profile(path: Path) -> Profile:
    """Raises ``LoadError``, naming the file and what is wrong with it."""
    try:
        profile = msgspec.toml.decode(path.read_bytes(), type=Profile)
    except OSError as error:
        raise LoadError(f"profile {path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise LoadError(f"profile {path} is not as docs/profiles.md describes: {error}") from error
    if fault := _fault(profile):
        raise LoadError(f"profile {path}: {fault}")
    return profile


def _fault(profile: Profile) -> str:
    if profile.schema != SCHEMA:
        return f"schema is {profile.schema}, this version reads {SCHEMA}"
    known = profile.model.extents(ImageParams())
    for role in profile.roles:
        if not profile.costs(role).batch_marginal:
            return f"{role}.batch_marginal needs at least one [N, m]"
        for tensor in profile.costs(role).outputs:
            if tensor.dtype not in DTYPE_BYTES:
                return f"{role} output {tensor.name}: dtype {tensor.dtype!r} is none of {', '.join(DTYPE_BYTES)}"
            strange = [extent for extent in tensor.shape if isinstance(extent, str) and extent not in known]
            if strange:
                return f"{role} output {tensor.name}: extent {strange[0]!r} is none of {', '.join(known)}"
    return ""

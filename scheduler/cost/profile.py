"""A cost profile: what one model costs on one device class. The file format is described in docs/profiles.md."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from scheduler.cost.tables import ProfileError, Section
from wire.references import References
from wire.types import MAX_UPSCALE, REQUIRED, Role
from wire.values import DTYPE_BYTES

__all__ = ["ModelShape", "Profile", "ProfileError", "RoleProfile", "TensorSpec", "bundled", "load", "parse"]

SCHEMA = 1
GIGABYTE = 10**9
COEFFICIENTS: dict[Role, tuple[str, ...]] = {
    Role.ENHANCER: ("fixed_seconds", "seconds_per_token"),
    Role.ENCODER: ("fixed_seconds", "seconds_per_text_token", "seconds_per_image_pixel"),
    Role.DIT: ("fixed_seconds", "seconds_per_token", "seconds_per_token_squared"),
    Role.DECODER: ("fixed_seconds", "seconds_per_pixel"),
    Role.UPSCALER: ("fixed_seconds", "seconds_per_pixel"),
}
"""Keys of a role's section, in the order of ``features.row``."""
DIMENSIONS = ("text_tokens", "latent_height", "latent_width", "latent_frames")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """How pixels become tokens and latents, and what a request means that leaves things open."""

    name: str
    default_steps: int = 50
    default_guidance: float = 1.0
    guidance_passes: int = 2
    text_tokens: int = 256
    pixels_per_token: int = 16
    latent_pixels: int = 8
    latent_frames: int = 1
    size_multiple: int = 16
    references: References | None = None
    """What becomes of pictures that an edit is given; without it they are brought to the size of the answer."""

    def tokens(self, height: int, width: int) -> int:
        """Image tokens N that the transformer sees."""
        side = self.pixels_per_token
        return -(-height // side) * -(-width // side) * self.latent_frames


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor that a stage hands on: extents are numbers or names from ``DIMENSIONS``."""

    port: Role
    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def nbytes(self, dimensions: dict[str, int]) -> int:
        extents = (extent if isinstance(extent, int) else dimensions[extent] for extent in self.shape)
        return prod(extents) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class RoleProfile:
    """One stage's costs."""

    coefficients: tuple[float, ...]
    """Seconds per feature of one pass, see ``COEFFICIENTS``."""
    weights_bytes: int = 0
    activation_bytes: int = 0
    load_seconds: float = 0.0
    batch_marginal: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    """Image tokens, by rising number, → cost of each further member in jobs."""
    outputs: tuple[TensorSpec, ...] = ()
    factor: int = 1
    """By which an upscaler makes width and height larger."""
    step_caches: Mapping[str, float] = field(default_factory=dict)
    """Of the dit: level → share of the time that jobs take which compute every step."""


@dataclass(frozen=True, slots=True)
class Profile:
    model: ModelShape
    device_class: str
    memory_bytes: int
    precision: str
    source: str
    roles: dict[Role, RoleProfile]

    def output_bytes(self, role: Role, height: int, width: int, text_tokens: int = 0) -> dict[Role, int]:
        """Bytes that one job of ``role`` hands to each later role; the finished picture is not among them."""
        dimensions = {
            "text_tokens": text_tokens or self.model.text_tokens,
            "latent_height": height // self.model.latent_pixels,
            "latent_width": width // self.model.latent_pixels,
            "latent_frames": self.model.latent_frames,
        }
        total: dict[Role, int] = {}
        for tensor in self.roles[role].outputs:
            total[tensor.port] = total.get(tensor.port, 0) + tensor.nbytes(dimensions)
        return total


def load(path: Path) -> Profile:
    """Read a profile file. Raises ``ProfileError``, naming file, key and what would be right."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile {path} cannot be read: {error}") from error
    return parse(text, str(path))


def parse(text: str, name: str) -> Profile:
    """The same from text; ``name`` stands for the file in errors."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"profile {name} is not TOML: {error}") from error
    top = Section(name, "", table)
    if (schema := top.integer("schema")) != SCHEMA:
        raise ProfileError(f"profile {name}: schema is {schema}, this version reads {SCHEMA}")
    device = top.section("device")
    profile = Profile(
        model=_model(top.section("model")),
        device_class=device.text("class"),
        memory_bytes=int(device.number("memory_gb") * GIGABYTE),
        precision=device.text("precision"),
        source=top.text("source"),
        roles={role: _role(role, top.section(role.value)) for role in Role if role in REQUIRED or role.value in table},
    )
    device.finish()
    top.finish()
    return profile


def bundled() -> tuple[Profile, ...]:
    """Those that come with the project, in the order of their file names."""
    folder = Path(__file__).parent.parent / "profiles"
    return tuple(load(path) for path in sorted(folder.glob("*.toml")))


def _model(section: Section) -> ModelShape:
    shape = ModelShape(
        name=section.text("name"),
        default_steps=section.integer("default_steps", least=1),
        default_guidance=section.number("default_guidance"),
        guidance_passes=section.integer("guidance_passes", least=1, most=2),
        text_tokens=section.integer("text_tokens", least=1),
        pixels_per_token=section.integer("pixels_per_token", least=1),
        latent_pixels=section.integer("latent_pixels", least=1),
        latent_frames=section.integer("latent_frames", least=1, default=1),
        size_multiple=section.integer("size_multiple", least=1),
        references=section.struct("references", References),
    )
    section.finish()
    return shape


def _role(role: Role, section: Section) -> RoleProfile:
    coefficients = tuple(section.number(key) for key in COEFFICIENTS[role])
    if not any(coefficients):
        raise ProfileError(f"{section.where}: all of {', '.join(COEFFICIENTS[role])} are 0; a job takes some time")
    profile = RoleProfile(
        coefficients=coefficients,
        weights_bytes=int(section.number("weights_gb") * GIGABYTE),
        activation_bytes=int(section.number("activation_gb") * GIGABYTE),
        load_seconds=section.number("load_seconds"),
        batch_marginal=section.points("batch_marginal"),
        outputs=tuple(_tensor(item) for item in section.sections("outputs")),
        factor=section.integer("factor", least=2, most=MAX_UPSCALE) if role is Role.UPSCALER else 1,
        step_caches=section.shares("step_caches") if role is Role.DIT else {},
    )
    section.finish()
    return profile


def _tensor(section: Section) -> TensorSpec:
    tensor = TensorSpec(
        port=Role(section.choice("port", (Role.DIT.value, Role.DECODER.value))),
        name=section.text("name"),
        dtype=section.choice("dtype", tuple(DTYPE_BYTES)),
        shape=section.shape("shape", DIMENSIONS),
    )
    section.finish()
    return tensor

"""What is to be predicted: one stage job, on one kind of server."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from wire.record import record
from wire.types import Role


class Target(NamedTuple):
    """Servers that share one cost model. Make it once per server with ``of``, not per prediction."""

    model: str
    """Last part of the model's name, in lower case."""
    device_class: str
    precision: str
    """torch's dtype name."""

    @classmethod
    def of(cls, model: str, device_class: str, precision: str) -> Target:
        return cls(short_name(model), device_class, precision)


@record(frozen=True, slots=True)
class Work:
    """One job of one stage."""

    role: Role
    height: int = 0
    """Pixels of the picture to make."""
    width: int = 0
    steps: int = 1
    """Denoising steps, of dit jobs only."""
    cfg: bool = False
    """Two forward passes per step (classifier-free guidance), of dit jobs only."""
    text_tokens: int = 0
    """Length of the prompt, of encoder jobs; of enhancer jobs with what is made of it; 0: the model's usual length."""
    image_pixels: int = 0
    """Pixels of all uploaded pictures that the encoder runs through the autoencoder."""
    picture_tokens: int = 0
    """That uploaded pictures add to the prompt, of encoder and dit jobs."""
    reference_pixels: int = 0
    """Pixels of uploaded pictures whose latents lengthen the sequence, of dit jobs only."""
    step_cache: str = ""
    """Level at which steps reuse what earlier ones computed, of dit jobs only; empty: all are computed."""
    batch: float = 1
    """Jobs of its kind that compute together, itself among them, in the mean over the job."""
    more_passes: float = 0.0
    """Forward passes in the mean of each step beside those, of dit jobs only; below 0 where some are left out."""

    def __post_init__(self) -> None:
        counts = (self.text_tokens, self.image_pixels, self.picture_tokens, self.reference_pixels)
        if min(self.height, self.width, *counts) < 0:
            raise ValueError(f"sizes and lengths are 0 or more, not {self}")
        if self.role not in (Role.ENHANCER, Role.ENCODER) and not (self.height and self.width):
            raise ValueError(f"{self.role} work needs a height and a width in pixels")
        if not self._step_passes > 0:
            raise ValueError(f"a step has some forward pass, and there are {self.more_passes} beside the usual ones")
        if self.steps < 1 or not self.batch >= 1:
            raise ValueError(f"steps and batch are 1 or more, not {self.steps} and {self.batch}")

    @property
    def passes(self) -> float:
        """Forward passes, or 1 for the stages that have no loop."""
        if self.role is not Role.DIT:
            return 1
        return self.steps * self._step_passes

    @property
    def _step_passes(self) -> float:
        return self.more_passes + (2 if self.cfg else 1)

    def is_like(self, other: Work) -> bool:
        """Equal in everything but the number of steps."""
        return self is other or replace(self, steps=1) == replace(other, steps=1)


def short_name(model: str) -> str:
    """``black-forest-labs/FLUX.1-dev`` → ``flux.1-dev``: what a profile's model name is compared with."""
    return model.rstrip("/").rpartition("/")[2].casefold()

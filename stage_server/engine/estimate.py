"""What a denoising job takes for the final latents while it is still on its way.

Every diffusion scheduler knows it at every step, and each says it differently; one whose way is not known gives none.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler


class Estimator:
    """Of the scheduler of one job's view."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._last: tuple[torch.Tensor, torch.Tensor, Any] | None = None

    def saw(self, model_output: torch.Tensor, sample: torch.Tensor, result: Any) -> None:
        """A step: what it was given, and what it gave, as an object with named fields."""
        self._last = model_output, sample, result

    def latents(self) -> torch.Tensor | None:
        """The estimate after the last step, in the form in which the loop keeps its latents; None where unknown."""
        if self._last is None:
            return None
        model_output, sample, result = self._last
        known: torch.Tensor | None = getattr(result, "pred_original_sample", None)
        if known is not None:
            return known
        if isinstance(self._scheduler, FlowMatchEulerDiscreteScheduler):
            return self._straight_on(model_output, sample)
        return self._of_multistep()

    def _straight_on(self, velocity: torch.Tensor, sample: torch.Tensor) -> torch.Tensor | None:
        """Flow matching: the way from here leads straight to the picture."""
        index = self._scheduler.step_index
        if index is None or self._scheduler.config.get("invert_sigmas"):
            return None
        sigma: torch.Tensor = self._scheduler.sigmas[index - 1]
        return sample - sigma * velocity

    def _of_multistep(self) -> torch.Tensor | None:
        """DPM-Solver++ and UniPC keep their predictions of the picture, if that is what they predict."""
        config = self._scheduler.config
        predicts_picture = config.get("predict_x0", False) or config.get("algorithm_type", "").endswith("dpmsolver++")
        outputs: list[torch.Tensor] | None = getattr(self._scheduler, "model_outputs", None)
        return outputs[-1] if predicts_picture and outputs else None

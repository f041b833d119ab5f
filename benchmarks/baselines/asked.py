"""What the baselines are asked, and with which model: the fields of ours that the comparison uses."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field

import stage_server

MODEL = Path(stage_server.__file__).parent / "models" / "tiny-shapes"
MOST = 8
"""Requests that are drawn by one call, at most."""


class Body(BaseModel):
    prompt: str = Field(min_length=1)
    size: str = Field("256x256", pattern=r"^\d{2,4}x\d{2,4}$")
    num_inference_steps: int = Field(12, ge=1, le=100)
    guidance_scale: float = 3.0
    seed: int | None = None

    @property
    def kind(self) -> tuple[str, int, float]:
        """Requests of one kind can be drawn by one call."""
        return self.size, self.num_inference_steps, self.guidance_scale

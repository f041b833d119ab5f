"""Pictures encoded once and kept, so that the transformer's training never waits for the autoencoder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from examples.train_tiny_shapes.drawing import draw_batch
from examples.train_tiny_shapes.optimisation import mixed_precision
from examples.train_tiny_shapes.plan import Size

BATCH = 32
BATCH_PIXELS = 4 * 256 * 256
"""Large pictures are encoded in smaller batches."""


@dataclass(frozen=True, slots=True)
class CaptionedLatents:
    captions: list[str]
    latents: Tensor
    """bfloat16 ``(n, channels, height / factor, width / factor)``, mean 0, deviation 1."""


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, size: Size, count: int, rng: Random) -> CaptionedLatents:
    """Draw and encode ``count`` random scenes."""
    captions: list[str] = []
    latents: list[Tensor] = []
    batch = max(1, min(BATCH, BATCH_PIXELS // (size[0] * size[1])))
    while len(captions) < count:
        words, pictures = draw_batch(min(batch, count - len(captions)), *size, rng)
        with mixed_precision():
            mode = vae.encode(pictures).latent_dist.mode().float()
        latents.append(((mode - vae.config.shift_factor) * vae.config.scaling_factor).bfloat16())
        captions += words
    return CaptionedLatents(captions, torch.cat(latents).contiguous())


def save_latents(folder: Path, size: Size, data: CaptionedLatents) -> None:
    save_file({"latents": data.latents}, _path(folder, size), metadata={"captions": json.dumps(data.captions)})


def load_latents(folder: Path, size: Size) -> CaptionedLatents:
    with safe_open(_path(folder, size), framework="pt") as file:
        return CaptionedLatents(json.loads(file.metadata()["captions"]), file.get_tensor("latents"))


def _path(folder: Path, size: Size) -> Path:
    return folder / f"{size[0]}x{size[1]}.safetensors"

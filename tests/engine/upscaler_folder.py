"""A tiny upscaler with random weights, as a folder that transformers would publish."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

FACTOR = 2


def save_upscaler(folder: Path, seed: int = 1, **changed: object) -> Path:
    """Two Swin layers of eight channels."""
    torch.manual_seed(seed)
    shape: dict[str, object] = {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 8,
        "mlp_ratio": 2.0,
    }
    config = Swin2SRConfig(**shape | {"upscale": FACTOR, "upsampler": "pixelshuffledirect"} | changed)
    Swin2SRForImageSuperResolution(config).save_pretrained(folder)
    return folder

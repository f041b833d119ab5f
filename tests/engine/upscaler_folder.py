"""A tiny upscaler with random weights, as a folder that transformers would publish."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution, Swin2SRImageProcessorPil

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


def by_transformers_alone(folder: Path, picture: Image.Image) -> npt.NDArray[np.uint8]:
    """As the library's documentation has it, without the rim that its processor adds."""
    model = Swin2SRForImageSuperResolution.from_pretrained(folder).eval()
    inputs = Swin2SRImageProcessorPil()(picture, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs).reconstruction.data.squeeze().float().clamp_(0, 1).numpy()
    made = (np.moveaxis(output, 0, -1) * 255.0).round().astype(np.uint8)
    return made[: picture.height * FACTOR, : picture.width * FACTOR]

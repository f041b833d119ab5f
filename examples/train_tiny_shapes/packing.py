"""The trained parts as one diffusers folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline
from transformers import Qwen2Tokenizer

from examples.train_tiny_shapes.plan import Shift
from examples.train_tiny_shapes.transformer import Denoiser


def pack(folder: Path, tokenizer: Qwen2Tokenizer, vae: AutoencoderKL, denoiser: Denoiser, shift: Shift) -> None:
    """Write a ``ZImagePipeline`` in bfloat16 (14 MB) to ``folder``, replacing what is there."""
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_image_seq_len=shift.base_tokens,
            max_image_seq_len=shift.max_tokens,
            base_shift=shift.base,
            max_shift=shift.maximum,
        ),
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        transformer=denoiser.transformer,
    ).to(torch.bfloat16)
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder)
    for config in folder.rglob("*.json"):
        _forget_origin(config)


def _forget_origin(config: Path) -> None:
    """diffusers notes the folder that a part came from, which means nothing on another machine."""
    content = json.loads(config.read_text())
    if content.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(content, indent=2) + "\n")

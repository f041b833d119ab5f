"""Tiny ControlNets with random weights, for the families that declare tasks with one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from tests.engine.tiny import pictures

UNION = "union"
"""The one that knows several kinds of pictures."""


def _of_unet(kind: Any, **options: Any) -> Any:
    unet = pictures.stable_diffusion_xl()[1]["unet"].config
    names = (
        "in_channels",
        "block_out_channels",
        "down_block_types",
        "layers_per_block",
        "attention_head_dim",
        "cross_attention_dim",
        "transformer_layers_per_block",
        "norm_num_groups",
        "use_linear_projection",
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
    )
    same = {name: unet[name] for name in names}
    return kind(**same, conditioning_embedding_out_channels=(8, 8, 8, 8), **options)


def _stable_diffusion_xl() -> Any:
    return _of_unet(diffusers.ControlNetModel)


def _union() -> Any:
    trans = {"num_trans_channel": 16, "num_trans_head": 2, "num_trans_layer": 1, "num_proj_channel": 16}
    return _of_unet(diffusers.ControlNetUnionModel, num_control_type=3, **trans)


def _qwen_image() -> Any:
    transformer = pictures.qwen_image()[1]["transformer"]
    config = {**transformer.config, "num_layers": 1, "extra_condition_channels": 0}
    return diffusers.QwenImageControlNetModel.from_config(config)


CONTROLS: Mapping[str, Mapping[str, Callable[[], Any]]] = {
    "stable-diffusion-xl": {"canny": _stable_diffusion_xl, "depth": _stable_diffusion_xl, UNION: _union},
    "qwen-image": {"canny": _qwen_image, "depth": _qwen_image},
}
"""Family → name → what makes it."""


def build_controls(family: str, folder: Path) -> dict[str, str]:
    """Name → the folder in which it lies. Those of diffusers begin with zeros, and would steer nothing."""
    found: dict[str, str] = {}
    for name, make in CONTROLS.get(family, {}).items():
        with torch.random.fork_rng():
            torch.manual_seed(sum(f"{family} {name}".encode()))
            net = make().eval()
            for parameter in net.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.2)
            net.save_pretrained(folder / name)
        found[name] = str(folder / name)
    return found

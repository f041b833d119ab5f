"""Tiny ControlNets and IP-Adapters with random weights, for the families that declare tasks with one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file

from stage_server.engine.control_source import SteeringSources
from tests.engine.tiny import pictures
from tests.engine.tiny.parts import WIDTH

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


def build_ip_adapters(folder: Path) -> tuple[dict[str, str], str]:
    """For SDXL: name → file, one that reads the embedding of a picture, and one that reads what is hidden in its
    encoder; and the folder of the encoder."""
    unet = pictures.stable_diffusion_xl()[1]["unet"]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        layers = {}
        attentions = [module for name, module in unet.named_modules() if name.endswith("attn2")]
        for index, attention in enumerate(attentions):
            for part in ("to_k", "to_v"):
                shape = getattr(attention, part).weight.shape
                layers[f"ip_adapter.{2 * index + 1}.{part}_ip.weight"] = torch.randn(shape) * 0.3
        encoder = transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=224,
                patch_size=56,
                projection_dim=24,
            )
        ).eval()
        encoder.save_pretrained(folder / "image_encoder")
        width = 2 * WIDTH
        plain = {
            "image_proj.proj.weight": torch.randn(4 * width, 24) * 0.3,
            "image_proj.proj.bias": torch.randn(4 * width),
            "image_proj.norm.weight": torch.ones(width),
            "image_proj.norm.bias": torch.zeros(width),
        }
        plus = {f"image_proj.{name}": tensor for name, tensor in _resampler(encoder.config.hidden_size, width).items()}
    files = {}
    for name, projection in (("style", plain), ("plus", plus)):
        save_file({**projection, **layers}, folder / f"{name}.safetensors")
        files[name] = str(folder / f"{name}.safetensors")
    return files, str(folder / "image_encoder")


def _resampler(read: int, made: int) -> dict[str, torch.Tensor]:
    """Of the plus kind, as its makers name the weights: four layers in which tokens look at what is hidden in the
    encoder, ``read`` features wide, and become ``made`` features wide."""
    hidden, head = 8, 64  # diffusers tells the number of heads by their width
    weights = {"latents": torch.randn(1, 4, hidden), "proj_in.weight": torch.randn(hidden, read) * 0.3}
    weights |= {"proj_in.bias": torch.randn(hidden), "proj_out.weight": torch.randn(made, hidden) * 0.3}
    weights |= {"proj_out.bias": torch.randn(made)}
    norms = {"norm_out": made}
    for layer in (f"layers.{index}" for index in range(4)):
        norms |= {f"{layer}.0.norm1": hidden, f"{layer}.0.norm2": hidden, f"{layer}.1.0": hidden}
        shapes = {"0.to_q": (head, hidden), "0.to_kv": (2 * head, hidden), "0.to_out": (hidden, head)}
        shapes |= {"1.1": (4 * hidden, hidden), "1.3": (hidden, 4 * hidden)}
        weights |= {f"{layer}.{name}.weight": torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    for name, width in norms.items():
        weights |= {f"{name}.weight": torch.rand(width) + 0.5, f"{name}.bias": torch.randn(width) * 0.3}
    return weights


def build_steering(family: str, folder: Path) -> SteeringSources:
    """All that there is for the family."""
    controls = build_controls(family, folder)
    if family != "stable-diffusion-xl":
        return SteeringSources(controls)
    return SteeringSources(controls, *build_ip_adapters(folder))


def load_ip_adapter(pipeline: Any, sources: SteeringSources, name: str, scale: float) -> None:
    """As diffusers' documentation does it. From then on no task runs without."""
    pipeline.update_components(
        image_encoder=transformers.CLIPVisionModelWithProjection.from_pretrained(sources.image_encoder),
        feature_extractor=transformers.CLIPImageProcessor(size=224, crop_size=224),
    )
    source = Path(sources.ip_adapters[name])
    pipeline.load_ip_adapter(str(source.parent), subfolder="", weight_name=source.name)
    pipeline.set_ip_adapter_scale(scale)

"""Tiny models with random weights, one or more per modular family, saved as the folders that the hub holds.

``python -m tests.engine.families FAMILY DIR`` writes one. The same family gives the same bytes on every run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from stage_server.engine.checkpoint import modular_class
from tests.engine.tiny import cosmos, modular, pictures, videos
from tests.engine.tiny.pictures import Model


def build(family: str, folder: Path) -> Path:
    """Write the family's model to ``folder`` and return it."""
    state = torch.get_rng_state()
    torch.manual_seed(sum(family.encode()))
    pipeline, components, extra = FAMILIES[family]()
    is_modular = pipeline.endswith("ModularPipeline")
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": diffusers.__version__, **extra}
    if is_modular:
        index["_blocks_class_name"] = getattr(diffusers, pipeline).default_blocks_name
    for name, component in components.items():
        kind = None if component is None else _save(component, folder / name)
        index[name] = _modular_entry(name, folder, kind) if is_modular else kind or [None, None]
    (folder / ("modular_model_index.json" if is_modular else "model_index.json")).write_text(
        json.dumps(index, indent=2)
    )
    torch.set_rng_state(state)
    return folder


def model_class(family: str) -> str:
    """The modular pipeline that the family's model is opened as."""
    pipeline, _, extra = FAMILIES[family]()
    named = getattr(diffusers, pipeline)
    return (named if issubclass(named, diffusers.ModularPipeline) else modular_class(pipeline, extra)).__name__


def _save(component: Any, folder: Path) -> list[str]:
    if isinstance(component, torch.nn.Module):
        component.eval()
    component.save_pretrained(folder)
    return [type(component).__module__.split(".")[0], type(component).__name__]


def _modular_entry(name: str, folder: Path, kind: list[str] | None) -> list[Any]:
    source = {"pretrained_model_name_or_path": str(folder), "subfolder": name, "variant": None, "revision": None}
    return [*(kind or [None, None]), {**source, "type_hint": kind}]


FAMILIES: Mapping[str, Callable[[], Model]] = {
    "z-image": pictures.z_image,
    "flux": pictures.flux,
    "flux-kontext": lambda: pictures.flux("FluxKontextPipeline", vae_factor=16),
    "flux2-dev": pictures.flux2_dev,
    "flux2-klein": lambda: pictures.flux2(distilled=True),
    "flux2-klein-base": lambda: pictures.flux2(distilled=False),
    "krea-2": pictures.krea_2,
    "stable-diffusion-3": lambda: pictures.stable_diffusion_3(with_t5=False),
    "stable-diffusion-3-t5": lambda: pictures.stable_diffusion_3(with_t5=True),
    "stable-diffusion-xl": pictures.stable_diffusion_xl,
    "qwen-image": pictures.qwen_image,
    "qwen-image-edit": lambda: pictures.qwen_image_edit("QwenImageEditPipeline"),
    "qwen-image-edit-plus": lambda: pictures.qwen_image_edit("QwenImageEditPlusPipeline"),
    "qwen-image-layered": modular.qwen_image_layered,
    "qwen-image-2.1": lambda: modular.qwen_image_2_1(turbo=False),
    "qwen-image-2.1-turbo": lambda: modular.qwen_image_2_1(turbo=True),
    "krea-2-turbo": modular.krea_2_turbo,
    "anima": modular.anima,
    "ernie-image": modular.ernie_image,
    "ideogram-4": modular.ideogram_4,
    "flux-3": lambda: modular.flux_3(distilled=False),
    "flux-3-distilled": lambda: modular.flux_3(distilled=True),
    "wan": lambda: videos.wan("WanPipeline"),
    "wan-2.2": lambda: videos.wan("WanPipeline", two=True),
    "wan-i2v": videos.wan_i2v,
    "wan-2.2-i2v": videos.wan_2_2_i2v,
    "ltx": videos.ltx,
    "cosmos-3": lambda: cosmos.cosmos_3(distilled=False),
    "cosmos-3-distilled": lambda: cosmos.cosmos_3(distilled=True),
    "hunyuan-video-1.5": videos.hunyuan_1_5,
    "hunyuan-video-1.5-i2v": videos.hunyuan_1_5_i2v,
    "helios": lambda: videos.helios(pyramid=False),
    "helios-pyramid": lambda: videos.helios(pyramid=True),
    "helios-pyramid-distilled": lambda: videos.helios(pyramid=True, distilled=True),
}

NEED_TORCHVISION = frozenset(
    {
        "qwen-image-edit",
        "qwen-image-edit-plus",
        "qwen-image-layered",
        "qwen-image-2.1",
        "qwen-image-2.1-turbo",
        "flux-3",
        "flux-3-distilled",
    }
)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in FAMILIES:
        sys.exit(f"usage: python -m tests.engine.families {{{'|'.join(FAMILIES)}}} DIR")
    build(sys.argv[1], Path(sys.argv[2]))

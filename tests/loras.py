"""Random LoRA files for tests, large enough to change a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from stage_server.engine.checkpoint import Checkpoint

ATTENTION = ("to_q", "to_k", "to_v", "q_proj", "v_proj", "to_out.0", "out_proj")

State = dict[str, torch.Tensor]


def layers(model: str, component: str, names: tuple[str, ...] = ATTENTION) -> dict[str, torch.nn.Module]:
    """Of a model's component, those that trainers take: name → the module, on the meta device."""
    pipeline = Checkpoint.find(model, None, local_files_only=True).open_pipeline()
    spec = pipeline.get_component_spec(component)
    files = Checkpoint.find(model, None, local_files_only=True).component_files(spec)
    kind: Any = files.type_hint
    with torch.device("meta"):
        config = files.config()
        is_ours = hasattr(kind, "from_config")
        module = kind.from_config(config) if is_ours else kind._from_config(kind.config_class.from_dict(config))
    return {name: layer for name, layer in module.named_modules() if name.endswith(names) and hasattr(layer, "weight")}


def lora(model: str, seed: int, component: str = "transformer", *, rank: int = 4, strength: float = 0.3) -> State:
    """In peft's and diffusers' form, keys with the component's name."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, layer in layers(model, component).items():
        outputs, inputs = layer.weight.shape  # type: ignore[misc]
        state[f"{component}.{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) * strength
        state[f"{component}.{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * strength
    return state


def write(path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None = None) -> str:
    """``metadata``: as diffusers notes it in the file, ``transformer.lora_alpha`` and the like."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noted = {"lora_adapter_metadata": json.dumps(metadata)} if metadata else None
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata=noted)
    return str(path)

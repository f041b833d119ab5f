"""What a component's weights will take, before it is loaded: from its configuration and the headers of its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from stage_server.engine.checkpoint import ComponentFiles
from stage_server.engine.leaves import tensors
from stage_server.engine.offloading import Held, held, split
from stage_server.engine.quantised import sizes
from stage_server.engine.stubs import meta_instance
from stage_server.offload import Offload
from stage_server.weight_formats import WeightFormat


def predicted(
    files: ComponentFiles, config: Mapping[str, Any], form: WeightFormat, level: Offload, dtype: torch.dtype
) -> Held:
    """In a format and offloaded. As if neither, where its class cannot be built from its configuration alone.

    Raises ``LoadError``, also for a level that would save nothing.
    """
    if not files.is_module:
        return Held(0, 0)
    is_changed = form is not WeightFormat.NONE or level is not Offload.NONE
    module = meta_instance(files.type_hint, config) if is_changed else None
    if module is None:
        return Held(files.weight_bytes(str(dtype).removeprefix("torch.")), 0)
    of = sizes(module, form, dtype)
    if level is Offload.NONE:
        return Held(sum(of(tensor) for tensor in tensors(module)), 0)
    return held(split(module, level), of)

"""What computes, with versions: where all of it is equal, so are results, to the bit."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import diffusers
import torch

MAX_TEXT = 1000


def computed_by(device: torch.device, further: Sequence[str] = ()) -> str:
    """One line, with ``further`` packages. Of a processor its model counts as well: libraries choose kernels by it."""
    parts = [f"torch {torch.__version__}", f"diffusers {diffusers.__version__}", *further]
    if device.type == "cuda":
        parts += [f"CUDA {torch.version.cuda}", f"cuDNN {torch.backends.cudnn.version()}"]  # type: ignore[no-untyped-call]
        parts.append(f"TF32 {torch.backends.cuda.matmul.allow_tf32}")
    else:
        parts += [_processor(), torch.backends.cpu.get_cpu_capability()]
    return ", ".join(parts)[:MAX_TEXT]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(names, platform.processor() or platform.machine())
    return "".join(character for character in name if character.isprintable())

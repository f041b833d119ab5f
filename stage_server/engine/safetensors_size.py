"""Sizes read off safetensors headers."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


def _header(path: Path) -> dict[str, dict[str, Any]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, dict[str, Any]] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header


def tensor_bytes(path: Path, itemsize: int) -> int:
    """Bytes of a file's tensors when floats are loaded with ``itemsize`` bytes each and the rest as stored."""
    total = 0
    for tensor in _header(path).values():
        start, end = tensor["data_offsets"]
        total += math.prod(tensor["shape"]) * itemsize if tensor["dtype"] in _FLOATS else end - start
    return total


def dominant_itemsize(path: Path) -> int:
    """Bytes per element of the float type that most elements of the file have; 4 without floats."""
    counts: Counter[str] = Counter()
    for tensor in _header(path).values():
        counts[tensor["dtype"]] += math.prod(tensor["shape"])
    return next((_FLOATS[name] for name, _ in counts.most_common() if name in _FLOATS), 4)

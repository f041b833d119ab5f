"""Sizes of weights, read off safetensors headers: on disk, or on the hub by range requests."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_OTHERS: Mapping[str, int] = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def element_counts(path: Path) -> dict[str, int]:
    """Elements per stored dtype (safetensors names) of one file."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    counts: Counter[str] = Counter()
    for name, tensor in header.items():
        if name != "__metadata__":
            counts[tensor["dtype"]] += math.prod(tensor["shape"])
    return dict(counts)


def loaded_bytes(counts: Mapping[str, int], itemsize: int) -> int:
    """Bytes in memory when floats are loaded with ``itemsize`` bytes each and the rest as stored."""
    return sum(n * (itemsize if dtype in _FLOATS else _OTHERS.get(dtype, itemsize)) for dtype, n in counts.items())

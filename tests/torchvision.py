"""Where the tests find torchvision, which the processors of Qwen-Image-Edit need and ``.[stage]`` does not bring.

``make test`` puts it into ``.torchvision``, beside ``.venv`` and not into it: a torchvision for CUDA does not find its
operators in a torch for CPUs, and transformers, which imports torchvision wherever it is installed, could not be
imported any more. Here such operators are declared before it looks for them. Nothing calls them.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

FOLDER = Path(__file__).parent.parent / ".torchvision"

_OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def make_importable() -> None:
    """Call it before anything imports transformers, which looks for torchvision once."""
    if FOLDER.is_dir() and importlib.util.find_spec("torchvision") is None:
        sys.path.append(str(FOLDER))
        sys.meta_path.insert(0, _Declares())


class _Declares(MetaPathFinder):
    """Finds nothing. Declares the operators when somebody looks for torchvision, so that others need no torch."""

    def __init__(self) -> None:
        self._asked = False
        self._library: object = None  # what it declares goes when it is collected

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "torchvision" and not self._asked:
            self._asked = True
            self._library = _declare()


def _declare() -> object:
    """None where torchvision's own library can be loaded."""
    import torch

    try:
        for path in (FOLDER / "torchvision").glob("_C*.so"):
            torch.ops.load_library(path)
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in _OPERATORS:
            library.define(f"{name}{_SIGNATURE}")
        return library
    return None

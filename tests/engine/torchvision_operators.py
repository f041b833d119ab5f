"""Lets a torchvision from PyPI be imported beside a torch without CUDA, whose operators it does not find.

transformers imports torchvision wherever it is installed. Nothing here calls the operators.
"""

from __future__ import annotations

import importlib.util

import torch

_OPERATORS = ("nms", "qnms")
_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")

if importlib.util.find_spec("torchvision") is not None:
    for name in _OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

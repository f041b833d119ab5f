"""What a LoRA adds to a layer, and in which calls.

Adapters are state of a module that many jobs share and interleave on, so nothing of them is ever set on the module. A
module that may be adapted gets one hook per layer when it is loaded; the hook adds what the *calling thread* has
switched on, and without that returns at once: the layer's own result then passes untouched, to the bit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Conv2d, Linear
from torch.nn.functional import conv2d, linear


@dataclass(frozen=True, slots=True)
class LowRank:
    """A pair of matrices for one layer: ``scale · up(down(x))``."""

    down: torch.Tensor
    """Rank × inputs; of a convolution rank × channels × height × width."""
    up: torch.Tensor
    """Outputs × rank; of a convolution outputs × rank × 1 × 1."""
    bias: torch.Tensor | None
    """Of ``up``."""
    scale: float
    """``alpha / rank``."""

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.down, self.up, self.bias) if tensor is not None)

    def to(self, device: torch.device, dtype: torch.dtype) -> LowRank:
        bias = None if self.bias is None else self.bias.to(device, dtype)
        return LowRank(self.down.to(device, dtype), self.up.to(device, dtype), bias, self.scale)

    def of(self, layer: torch.nn.Module, given: torch.Tensor) -> torch.Tensor:
        """What it adds to ``layer``'s result for the input ``given``, before any scale of a request."""
        given = given.to(self.down.dtype)
        if isinstance(layer, Conv2d):
            padding: Any = layer.padding
            inner = conv2d(given, self.down, None, layer.stride, padding, layer.dilation)
            return conv2d(inner, self.up, self.bias) * self.scale
        return linear(linear(given, self.down), self.up, self.bias) * self.scale


Patch = Mapping[str, LowRank]
"""An adapter's part for one component: layer name → what is added there."""

Patches = Mapping[str, Sequence[tuple[Patch, float]]]
"""Component → the parts that are switched on, each with its request's scale."""


class _Switched(threading.local):
    def __init__(self) -> None:  # once per thread
        self.patches: Patches = {}


_switched = _Switched()


@contextmanager
def switched_on(patches: Patches) -> Iterator[None]:
    """Within, calls that this thread makes of the components get ``patches``, and those of other threads do not."""
    before, _switched.patches = _switched.patches, patches
    try:
        yield
    finally:
        _switched.patches = before


def is_adaptable(layer: torch.nn.Module) -> bool:
    plain = isinstance(layer, Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    return isinstance(layer, Linear) or plain


def make_adaptable(component: str, module: torch.nn.Module) -> None:
    """Once per loaded module. Hooks are compiled away, so calls with an adapter run as they are written."""
    for name, layer in module.named_modules():
        if is_adaptable(layer):
            layer.register_forward_hook(_Hook(component, name))


@dataclass(frozen=True, slots=True)
class _Hook:
    component: str
    layer: str

    def __call__(self, module: torch.nn.Module, given: tuple[Any, ...], result: torch.Tensor) -> torch.Tensor | None:
        if torch.compiler.is_compiling():
            return None
        patches = _switched.patches.get(self.component)
        if not patches:
            return None
        for patch, scale in patches:
            part = patch.get(self.layer)
            if part is not None:
                result = result + (part.of(module, given[0]) * scale).to(result.dtype)
        return result


def nbytes(patch: Patch) -> int:
    return sum(part.nbytes for part in patch.values())

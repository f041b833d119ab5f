"""How many bytes of tensors are alive at once while a module computes, found without computing anything."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch writes no types here
    """Counts what is made while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # likewise
        self._now: dict[int, int] = {}
        self.most = 0
        """Bytes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._note, made)
        self.most = max(self.most, sum(self._now.values()))
        return made

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._now:
            self._now[key] = storage.nbytes()
            weakref.finalize(storage, self._now.pop, key, None)


class _Attention(TorchFunctionMode):
    """As on a device, whose kernels keep no square of all positions: on meta tensors it would be made."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0] if args else (kwargs or {})["query"])
        return func(*args, **(kwargs or {}))


def most_alive(compute: Callable[[torch.Tensor], Any], given: torch.Tensor) -> int:
    """Bytes. ``compute`` works on ``given``, which is on the meta device, as all of its weights are."""
    alive = Alive()
    with torch.no_grad(), alive, _Attention():
        compute(given)
    return alive.most + given.nbytes

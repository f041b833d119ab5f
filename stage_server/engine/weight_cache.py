"""Components given up, kept in host memory: a role that comes back is moved to the device instead of loaded again."""

from __future__ import annotations

import logging
from collections import OrderedDict
from itertools import chain
from typing import Any

import torch

_log = logging.getLogger(__name__)

NOMINAL_BYTES = 16 << 20
"""What a component without weights (a tokenizer) counts as: about what the larger ones take."""


class WeightCache:
    """At most ``limit`` bytes; the component given up longest ago goes first. 0 keeps nothing."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    @property
    def used(self) -> int:
        """Bytes."""
        return sum(nbytes for _, nbytes in self._kept.values())

    def put(self, name: str, component: Any) -> None:
        """Keep ``component``, moved to the host, unless it is larger than the whole cache or than the host has room."""
        nbytes = _nbytes(component)
        if nbytes > self._limit:
            return
        self._kept.pop(name, None)
        while self.used + nbytes > self._limit:
            self._kept.popitem(last=False)
        try:
            if isinstance(component, torch.nn.Module):
                component.to("cpu")
        except (RuntimeError, MemoryError) as error:
            _log.warning("%s is not kept on the host: %s", name, error)
        else:
            self._kept[name] = component, nbytes

    def take(self, name: str) -> Any | None:
        """The component, on the host still and no longer kept; None if it is not here."""
        return self._kept.pop(name, (None, 0))[0]

    def clear(self) -> None:
        self._kept.clear()


def _nbytes(component: Any) -> int:
    if not isinstance(component, torch.nn.Module):
        return NOMINAL_BYTES
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in chain(component.parameters(), component.buffers())}
    return sum(tensors.values())  # tied weights count once

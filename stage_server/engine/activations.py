"""What a VAE needs beside its weights to decode one picture: found by decoding on torch's meta device, where tensors
have shapes and no memory, and counting which of them are there at once.

Not counted: what kernels take for themselves, and what the allocator wastes. ``SLACK`` stands for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import finalize

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stage_server.engine.stubs import meta_instance
from stage_server.engine.tiling import tile

SLACK = 1.25
"""Times what was counted."""


def decoding_bytes(
    kind: Any, config: Mapping[str, Any], dtype: torch.dtype, latents: Sequence[int], tiles: int | None
) -> int | None:
    """Of one picture whose latents have that shape, in ``tiles`` of so many pixels or as a whole.

    None where that cannot be found out: of a class that needs more than its configuration, say. Raises ``LoadError``
    for tiles that the class has not, or not of that side.
    """
    vae = meta_instance(kind, config)
    if vae is None:
        return None
    vae = vae.to(dtype).eval()
    if tiles is not None:
        tile(vae, tiles)
    counted = _counted(vae, torch.empty(tuple(latents), dtype=dtype, device="meta"))
    return None if counted is None else int(SLACK * counted)


def _counted(vae: Any, latents: torch.Tensor) -> int | None:
    alive = _Alive([*vae.parameters(), *vae.buffers(), latents])
    try:
        with torch.no_grad(), _AttentionWithoutScores(), alive:
            vae.decode(latents, return_dict=False)
    except Exception:  # whatever a network says about latents of another form
        return None
    return alive.most


class _Alive(TorchDispatchMode):
    """Bytes of what was made within, and is there."""

    def __init__(self, there: Iterable[torch.Tensor]) -> None:
        """``there``: what does not count, as it was made before."""
        super().__init__()
        self.most = self._now = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in there}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor):
                self._note(made.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, nbytes = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._now += nbytes
        self.most = max(self.most, self._now)
        finalize(storage, self._gone, key, nbytes)

    def _gone(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self._now -= nbytes


class _AttentionWithoutScores(TorchFunctionMode):
    """Devices compute attention without a matrix of all pairs, which the meta device would make."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            query, _, value, *_ = [*args, *(kwargs or {}).values()]
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return func(*args, **(kwargs or {}))

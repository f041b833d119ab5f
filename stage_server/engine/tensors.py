"""torch and PIL values ↔ ``wire.values``. On a CPU little is copied; devices copy through ``staging``."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image as PilImage

from stage_server.engine.png import encode_png
from wire.errors import UnsupportedValue
from wire.values import DTYPE_BYTES, Image, Tensor, Value

_TENSOR, _AXES = "tensor in memory order", "axes in memory order"
"""Keys of the dict that stands for a tensor whose axes lie in memory in another order than its shape's."""

_DTYPE = "torch dtype"
"""Key of the dict that stands for a ``torch.dtype``, by its name."""

ALIGNMENT = 64
"""Bytes. torch's own CPU buffers have it, and some CPU kernels round differently without it."""

TORCH_DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_BYTES if hasattr(torch, name)}
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

# Received buffers are read-only and blocks never write to their inputs (the family tests check it).
warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)

ToHost = Callable[[torch.Tensor], torch.Tensor]
ToDevice = Callable[[torch.Tensor], torch.Tensor]


def to_wire(name: str, value: Any, to_host: ToHost) -> Value:
    """``value`` as the blocks made it → what may cross. Raises ``UnsupportedValue`` naming what may not."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, torch.Tensor):
        return _strided_to_wire(name, to_host(value))
    if isinstance(value, torch.Generator):
        return tensor_to_wire(name, value.get_state())
    if isinstance(value, torch.dtype):
        return {_DTYPE: str(value).removeprefix("torch.")}
    if isinstance(value, list):
        return [to_wire(name, item, to_host) for item in value]
    if isinstance(value, tuple):
        return tuple(to_wire(name, item, to_host) for item in value)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: to_wire(f"{name}.{key}", item, to_host) for key, item in value.items()}
    if isinstance(value, PilImage.Image):
        return Image(encode_png(value))
    raise UnsupportedValue(
        f"{name} is a {type(value).__module__}.{type(value).__qualname__}, which cannot cross between stages; "
        "tensors, dtypes, pictures, numbers, strings and lists, tuples and dicts of them can"
    )


def moved(value: Any, move: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """``value`` with every tensor in its lists, tuples and dicts replaced by what ``move`` makes of it."""
    if isinstance(value, torch.Tensor):
        return move(value)
    if isinstance(value, list):
        return [moved(item, move) for item in value]
    if isinstance(value, tuple):
        return tuple(moved(item, move) for item in value)
    if isinstance(value, dict):
        return {key: moved(item, move) for key, item in value.items()}
    return value


def from_wire(value: Value, to_device: ToDevice) -> Any:
    """The inverse of ``to_wire``. A tensor on the CPU shares the buffer it came in and keeps it alive."""
    if isinstance(value, Tensor):
        return to_device(tensor_from_wire(value))
    if isinstance(value, Image):
        picture = PilImage.open(io.BytesIO(value.png))
        picture.load()
        return picture
    if isinstance(value, list):
        return [from_wire(item, to_device) for item in value]
    if isinstance(value, tuple):
        return tuple(from_wire(item, to_device) for item in value)
    if isinstance(value, dict) and value.keys() == {_TENSOR, _AXES}:
        return _strided_from_wire(value, to_device)
    if isinstance(value, dict) and value.keys() == {_DTYPE}:
        return _dtype_from_wire(value[_DTYPE])
    if isinstance(value, dict):
        return {key: from_wire(item, to_device) for key, item in value.items()}
    return value


def _dtype_from_wire(name: Value) -> torch.dtype:
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype):
        raise UnsupportedValue(f"this torch ({torch.__version__}) has no dtype {name!r}")
    return dtype


def _strided_to_wire(name: str, tensor: torch.Tensor) -> Value:
    """Kernels round differently on other memory layouts (channels last, say), so a permuted layout crosses too."""
    strides = tensor.stride()
    axes = tuple(sorted(range(tensor.dim()), key=lambda axis: -strides[axis]))
    in_memory = tensor.permute(axes)
    if tensor.is_contiguous() or not in_memory.is_contiguous():
        return tensor_to_wire(name, tensor)
    return {_TENSOR: tensor_to_wire(name, in_memory), _AXES: axes}


def _strided_from_wire(value: Mapping[str, Value], to_device: ToDevice) -> torch.Tensor:
    stored, axes = value[_TENSOR], value[_AXES]
    if not isinstance(stored, Tensor) or not isinstance(axes, tuple) or set(axes) != set(range(len(stored.shape))):
        raise UnsupportedValue(f"a permuted tensor must have a tensor and the order of its axes, not {axes!r}")
    return to_device(tensor_from_wire(stored)).permute([axes.index(axis) for axis in range(len(axes))])


def tensor_to_wire(name: str, tensor: torch.Tensor) -> Tensor:
    """A dense host tensor as a view of its memory; copied only if strided or a small part of a buffer."""
    if tensor.dtype not in _NAMES:
        raise UnsupportedValue(
            f"{name} has dtype {tensor.dtype}, which cannot cross; one of {', '.join(_NAMES.values())} can"
        )
    dense = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if dense.untyped_storage().nbytes() > 2 * dense.nbytes:
        dense = dense.clone()
    flat = dense.reshape(-1).view(torch.uint8)
    return Tensor(_NAMES[tensor.dtype], tuple(tensor.shape), flat.numpy().data.cast("B"))


def tensor_from_wire(value: Tensor) -> torch.Tensor:
    """A host tensor over the received buffer; copied only where the buffer is not aligned."""
    dtype = TORCH_DTYPES.get(value.dtype)
    if dtype is None:
        raise UnsupportedValue(f"this torch ({torch.__version__}) has no dtype {value.dtype}")
    if value.data.nbytes == 0:
        return torch.empty(value.shape, dtype=dtype)
    tensor = torch.frombuffer(value.data, dtype=dtype).reshape(value.shape)
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def generator_from_state(state: torch.Tensor) -> torch.Generator:
    """A CPU generator that continues where another stage's stopped."""
    generator = torch.Generator("cpu")
    generator.set_state(state.clone())
    return generator


def as_is(tensor: torch.Tensor) -> torch.Tensor:
    """For ``to_wire``: it is on the host already."""
    return tensor

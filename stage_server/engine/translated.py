"""The engine's edge to the libraries: what they raise, and what they cannot take, in our errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stage_server.engine.base import EngineError, LoadError, OutOfMemory
from stage_server.engine.port import is_out_of_memory
from stage_server.engine.tensors import TORCH_DTYPES
from wire.errors import UnsupportedValue

_BLOCK_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NameError,
    AssertionError,
    ArithmeticError,
    OSError,
    UnsupportedValue,
)


@contextmanager
def errors_translated(device: torch.device) -> Iterator[None]:
    """What blocks raise → ``EngineError``. ``JobCancelled`` passes."""
    try:
        yield
    except (*_BLOCK_ERRORS, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(f"the job does not fit into the memory of {device}") from error
        raise EngineError(f"{type(error).__name__}: {error}") from error


@contextmanager
def opening(model: str) -> Iterator[None]:
    """What reading configurations raises that nobody foresaw → ``LoadError``: they are the operator's to put right."""
    try:
        yield
    except OSError as error:
        raise LoadError(f"{error.filename or model} cannot be read: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise LoadError(f"the configuration of {model} cannot be used: {type(error).__name__}: {error}") from error


def known_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise LoadError(f"device {name!r} is unknown; for example cpu or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LoadError(f"device {name!r} is not there: torch finds no CUDA device")
    return device


def torch_dtype(name: str) -> torch.dtype:
    dtype = TORCH_DTYPES.get(name)
    if dtype is None or not dtype.is_floating_point:
        raise LoadError(f"dtype {name!r} cannot hold weights; float32, bfloat16 or float16 can")
    return dtype

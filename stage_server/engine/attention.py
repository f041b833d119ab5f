"""Which of diffusers' attention backends is the fastest here, by trying: at a model's own size, on its device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, dispatch_attention_fn

from stage_server.engine.base import LoadError

AUTO = "auto"
NATIVE = "native"
"""torch's own choice, and diffusers' where none is named."""

WORTH = 0.9
"""Of the native one's time, at most, for another to be chosen: the choice is part of the model's key, and machines that
are equal are to make the same one."""

TEXT_TOKENS = 512
"""Beside those of the picture."""

_REPEATS = 7
_LEFT_OUT = ("hub", "varlen", "npu", "xla", "sage", "math", "flex")
"""In names: what is downloaded when it is used, has another form of call, is for other devices, rounds to 8 bits, or
makes a matrix of all scores."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shape:
    heads: int
    width: int
    """Of one head."""
    tokens: int

    @classmethod
    def of(cls, denoiser: Mapping[str, Any], picture_tokens: int) -> Shape:
        """From its configuration. Raises ``LoadError`` where that does not tell."""
        heads = denoiser.get("num_attention_heads", denoiser.get("n_heads"))
        width = denoiser.get("attention_head_dim")
        if width is None and isinstance(heads, int) and isinstance(denoiser.get("dim"), int):
            width = denoiser["dim"] // heads
        if not isinstance(heads, int) or not isinstance(width, int):
            raise LoadError(
                "--attention-backend auto cannot tell the heads of this denoiser from its configuration; name a backend"
            )
        return cls(heads, width, picture_tokens + TEXT_TOKENS)


Clock = Callable[[], float]


def fastest(shape: Shape, device: torch.device, dtype: torch.dtype, clock: Clock = perf_counter) -> str:
    """Its name; the native one where no other is clearly faster.

    Only such are tried as take a mask, which prompts of different lengths bring, and as agree with the native one.
    """
    inputs = [torch.randn(1, shape.tokens, shape.heads, shape.width, device=device, dtype=dtype) for _ in range(3)]
    mask = torch.ones(1, 1, 1, shape.tokens, device=device, dtype=torch.bool)
    mask[..., -TEXT_TOKENS // 2 :] = False
    expected = [_called(NATIVE, inputs, each) for each in (None, mask)]
    times = {NATIVE: _seconds(NATIVE, inputs, device, clock)}
    for name in candidates():
        try:
            found = [_called(name, inputs, each) for each in (None, mask)]
            if all(_agree(one, other) for one, other in zip(found, expected, strict=True)):
                times[name] = _seconds(name, inputs, device, clock)
        except Exception as error:  # packages, devices, dtypes: whatever it lacks, it is none to choose
            _log.debug("attention backend %s: %s", name, error)
    best = min(times, key=times.__getitem__)
    chosen = best if times[best] < WORTH * times[NATIVE] else NATIVE
    told = ", ".join(
        f"{name} {1e3 * seconds:.3g} ms" for name, seconds in sorted(times.items(), key=lambda each: each[1])
    )
    _log.info("attention of %d tokens, %d heads: %s; %s is used", shape.tokens, shape.heads, told, chosen)
    return chosen


def set_backend(module: Any, name: str) -> None:
    """On this module alone: diffusers would have it for every other one of the process, too. Raises ``LoadError``."""
    try:
        with _others_kept():
            module.set_attention_backend(name)
    except (ValueError, RuntimeError, ImportError, AttributeError) as error:
        raise LoadError(f"attention backend {name!r} cannot be used: {error}") from error


@contextmanager
def _others_kept() -> Any:
    active = _AttentionBackendRegistry._active_backend
    try:
        yield
    finally:
        _AttentionBackendRegistry._active_backend = active


def candidates() -> Iterable[str]:
    names = (backend.value for backend in AttentionBackendName)
    return [name for name in names if name != NATIVE and not any(part in name for part in _LEFT_OUT)]


def _called(name: str, inputs: list[torch.Tensor], mask: torch.Tensor | None) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = dispatch_attention_fn(*inputs, attn_mask=mask, backend=AttentionBackendName(name))
    return result


def _agree(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Up to rounding."""
    most = 1e-3 if other.dtype == torch.float32 else 3e-2
    return one.shape == other.shape and float((one - other).norm() / other.norm()) <= most


def _seconds(name: str, inputs: list[torch.Tensor], device: torch.device, clock: Clock) -> float:
    times = []
    for _ in range(_REPEATS):
        began = clock()
        _called(name, inputs, None)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - began)
    return median(times)

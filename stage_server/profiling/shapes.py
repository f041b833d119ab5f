"""What the tensors that cross between stages have in common: which extents follow from the job, and how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stage_server.engine.base import NamedValues, Outputs
from stage_server.profiling.measure import Measured, Size
from wire.types import Role
from wire.values import Tensor, Value


@dataclass(frozen=True, slots=True)
class TensorShape:
    port: str
    name: str
    dtype: str
    shape: tuple[int | str, ...]
    """Extents, or the names that docs/profiles.md gives them."""


@dataclass(frozen=True, slots=True)
class Shapes:
    text_tokens: int
    """Of a prompt of usual length."""
    short_tokens: int
    """Of a short one; the same where prompts are padded."""
    latent_pixels: int
    encoder: tuple[TensorShape, ...]
    dit: tuple[TensorShape, ...]


def read_shapes(measured: Measured) -> Shapes:
    by_size = measured.outputs[Role.ENCODER]
    usual = by_size[min(by_size, key=_area)]
    tokens, short = _tokens(usual, measured.short_prompt)
    latents = measured.outputs[Role.DIT]
    side = _latent_pixels(latents)
    largest = max(latents, key=_area)
    names = {largest[1] // side: "latent_height", largest[0] // side: "latent_width"}
    return Shapes(
        text_tokens=tokens,
        short_tokens=short,
        latent_pixels=side,
        encoder=tuple(_named(port, name, tensor, {tokens: "text_tokens"}) for port, name, tensor in _tensors(usual)),
        dit=tuple(_spatial(port, name, tensor, names) for port, name, tensor in _tensors(latents[largest])),
    )


def _tokens(usual: Outputs, short: Outputs) -> tuple[int, int]:
    """The extent that follows the prompt's length, for both prompts; where none does, that of the padded embedding."""
    pairs = [(a, b) for (_, _, a), (_, _, b) in zip(_tensors(usual), _tensors(short), strict=True)]
    varying = [(m, n) for a, b in pairs for m, n in zip(a.shape, b.shape, strict=True) if m != n]
    if varying:
        return varying[0]
    padded = next((a.shape[-2] for a, _ in pairs if len(a.shape) > 1), 1)
    return padded, padded


def _latent_pixels(latents: Mapping[Size, Outputs]) -> int:
    """Side of the square of pixels that one element of the latents stands for."""
    small, large = min(latents, key=_area), max(latents, key=_area)
    for (_, _, a), (_, _, b) in zip(_tensors(latents[small]), _tensors(latents[large]), strict=True):
        for m, n in zip(a.shape, b.shape, strict=True):
            if m != n and small[1] // m == large[1] // n:
                return large[1] // n
    return 1


def _named(port: str, name: str, tensor: Tensor, names: Mapping[int, str]) -> TensorShape:
    return TensorShape(port, name, tensor.dtype, tuple(names.get(extent, extent) for extent in tensor.shape))


def _spatial(port: str, name: str, tensor: Tensor, names: Mapping[int, str]) -> TensorShape:
    """Height and width come last, in this order, and may be equal."""
    *front, rows, columns = tensor.shape if len(tensor.shape) > 2 else (*tensor.shape, 0, 0)
    if rows not in names or columns not in names:
        return TensorShape(port, name, tensor.dtype, tensor.shape)
    return TensorShape(port, name, tensor.dtype, (*front, "latent_height", "latent_width"))


def _tensors(outputs: Outputs) -> Iterator[tuple[str, str, Tensor]]:
    """Port, name, tensor; those in lists are told apart by number from the second on."""
    for port, values in outputs.items():
        for name, tensor in _flat(values):
            yield port, name, tensor


def _flat(values: NamedValues) -> Iterator[tuple[str, Tensor]]:
    for name, value in values.items():
        for number, tensor in enumerate(_leaves(value)):
            yield (f"{name}.{number}" if number else name), tensor


def _leaves(value: Value) -> Iterator[Tensor]:
    match value:
        case Tensor():
            yield value
        case list() | tuple():
            for item in value:
                yield from _leaves(item)
        case dict():
            for item in value.values():
                yield from _leaves(item)


def _area(size: Size) -> int:
    return size[0] * size[1]

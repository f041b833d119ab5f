"""The plain tensors behind a component's weights, of which quantised ones are made up.

torchao wraps several tensors in one that says another dtype and size; bitsandbytes hangs scales on a parameter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch

Place = tuple[torch.nn.Module, str, torch.nn.Parameter]
"""A layer, the name of one of its parameters, and that."""


def tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Parameters and buffers, each once, also where two layers share it."""
    seen: set[int] = set()
    for tensor in chain(module.parameters(), module.buffers()):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor


def leaves(tensor: Any) -> Iterator[torch.Tensor]:
    """What takes memory."""
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        yield from _of_state(state)
    if is_wrapper(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from leaves(getattr(tensor, name))
    else:
        yield tensor


def nbytes(module: torch.nn.Module) -> int:
    """Tied weights count once."""
    found = (leaf for tensor in tensors(module) for leaf in leaves(tensor))
    return sum({leaf.data_ptr(): leaf.nbytes for leaf in found}.values())


def is_wrapper(tensor: Any) -> bool:
    return hasattr(tensor, "__tensor_flatten__")


def is_composed(tensor: Any) -> bool:
    """It cannot be moved by its ``data`` alone."""
    return is_wrapper(tensor) or getattr(tensor, "quant_state", None) is not None


def composed(module: torch.nn.Module) -> list[Place]:
    return [
        (layer, name, parameter)
        for layer in module.modules()
        for name, parameter in layer.named_parameters(recurse=False)
        if is_composed(parameter)
    ]


def rebuilt(parameter: Any, each: Callable[[torch.Tensor], torch.Tensor]) -> torch.nn.Parameter:
    """A composed parameter of other leaves; ``parameter`` stays as it is."""
    if is_wrapper(parameter):
        return torch.nn.Parameter(_rewrapped(parameter, each), requires_grad=False)
    found = copy.copy(parameter)
    found.quant_state = copy.copy(parameter.quant_state)
    state = found.quant_state
    while state is not None:
        for name, value in vars(state).items():
            if isinstance(value, torch.Tensor):
                setattr(state, name, each(value))
        if getattr(state, "state2", None) is not None:
            state.state2 = copy.copy(state.state2)
        state = getattr(state, "state2", None)
    found.data = each(parameter.data)
    return found  # type: ignore[no-any-return]  # bitsandbytes' own class of parameters


def put(layer: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
    """``parameter`` takes the place of the layer's one."""
    layer._parameters[name] = parameter
    if getattr(layer, "quant_state", None) is not None:  # bitsandbytes' layers have it a second time
        layer.quant_state = parameter.quant_state  # type: ignore[attr-defined]


def _rewrapped(tensor: Any, each: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    names, context = tensor.__tensor_flatten__()
    inner = {}
    for name in names:
        part = getattr(tensor, name)
        inner[name] = _rewrapped(part, each) if is_wrapper(part) else each(part)
    made: torch.Tensor = type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
    return made


def _of_state(state: Any) -> Iterator[torch.Tensor]:
    yield from (value for value in vars(state).values() if isinstance(value, torch.Tensor))
    if getattr(state, "state2", None) is not None:
        yield from _of_state(state.state2)

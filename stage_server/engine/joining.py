"""Calls of one module as one call: what may be joined, how arguments are put together and results taken apart.

Knows no family. Which part of a value belongs to which member is read off its shape, and proved before it is relied on:
see ``Plan``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
_ROUGH = 0.1
"""Of all narrower types: distance between a member's results alone and joined, in lengths of the former. Rounding stays
far below, and another member's result is about 1 away."""

_NOT_PASSED_ON = frozenset({"past_key_values"})
"""Of what text encoders return: a cache for the next token, of which a picture needs none."""


class CannotJoin(Exception):
    """These values are not such that several members' could be one."""


@dataclass(frozen=True, slots=True, eq=False)
class Arguments:
    """Of one call, which stands for ``members`` pictures: nearly always one."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def members(self) -> int:
        """Extent of the first tensor, or length of the first list of tensors: all models take the latents or tokens
        first. 0: there is neither."""
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, torch.Tensor) and value.ndim:
                return int(value.shape[0])
            if _is_ragged(value):
                return len(value)
        return 0

    def signature(self) -> Hashable:
        """Equal for calls that may be tried as one."""
        members = self.members
        shape = tuple(_signature(value, members) for value in self.args)
        return members, shape, tuple((name, _signature(value, members)) for name, value in self.kwargs.items())


def joined(calls: Sequence[Arguments]) -> Arguments:
    """One call for all, which have equal signatures. Raises ``CannotJoin``."""
    members = calls[0].members
    if not members:
        raise CannotJoin("no argument tells the members apart")
    args = tuple(_join(values, members) for values in zip(*(call.args for call in calls), strict=True))
    names = calls[0].kwargs
    return Arguments(args, {name: _join([call.kwargs[name] for call in calls], members) for name in names})


_SHAPE = "its shape"
COMMON = "an argument that belongs to no member"
"""Among ``differences``: calls that differ in one are never joined."""


def differences(first: Arguments, other: Arguments, proven: Collection[Hashable] = ()) -> frozenset[Hashable]:
    """Places of tensors in which two calls of equal signature differ, those that are ``proven`` left out."""
    members = first.members
    pairs = [
        *enumerate(zip(first.args, other.args, strict=True)),
        *((name, (value, other.kwargs[name])) for name, value in first.kwargs.items()),
    ]
    return frozenset(
        place for name, (one, another) in pairs for place in _differences((name,), one, another, members, proven)
    )


class Plan:
    """How a joined result is taken apart: learned from what two members gave alone, and what they gave joined.

    Only where each one's part of the joined result is its own result, up to rounding, does a plan exist. That proves
    nothing of arguments that were equal then: some modules read those of the first member for all (FLUX.2 its
    positions). So it holds for calls that differ in ``proven`` places only, and is proved anew for others.
    """

    def __init__(
        self,
        alone: Sequence[Any],
        together: Any,
        members: int,
        proven: frozenset[Hashable],
        mistaken: Sequence[Any] = (),
    ) -> None:
        """``alone``: results of two calls of ``members`` each, which differ in ``proven``. Raises ``CannotJoin``."""
        self._members = members
        self._layout = _layout(alone[0], together, members)
        self.proven: frozenset[Hashable] = frozenset()
        self.refused: set[frozenset[Hashable]] = set()
        """What calls may not differ in, beside what is proven."""
        self.prove(alone, together, proven, mistaken)

    def prove(
        self, alone: Sequence[Any], together: Any, places: frozenset[Hashable], mistaken: Sequence[Any] = ()
    ) -> None:
        """Two calls that differ in these may be joined as well. Raises ``CannotJoin``, and will refuse such calls.

        ``mistaken``: what the second gives with the first one's values in one of the places, which its part must not be
        much nearer to than to its own result. Rounding in narrow types is too coarse to tell that otherwise.
        """
        self.refused.add(places - self.proven)
        parts = self.split(together, 2)
        for result, part in zip(alone, parts, strict=True):
            _compare(result, part)
        own = _distance(parts[1], alone[1])
        if any(
            2 * _distance(parts[1], other) < own for other in mistaken
        ):  # about equal: it matters less than rounding
            raise CannotJoin("a member's result is made of another one's arguments in company")
        self.refused.discard(places - self.proven)
        self.proven |= places

    def split(self, together: Any, calls: int) -> list[Any]:
        """Each call's result."""
        return [_part(together, self._layout, index * self._members, self._members) for index in range(calls)]


def tells_apart(first: Any, second: Any) -> bool:
    """Whether two results are numbers, and different ones: a plan learned from others would prove nothing."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (*_floats(first), *_floats(second))):
        return False
    try:
        _compare(first, second)
    except CannotJoin:
        return True
    return False


def is_rough(result: Any) -> bool:
    """Of types so narrow that results which are made of other arguments may pass for rounding."""
    return any(tensor.dtype not in _TOLERANCE for tensor in _floats(result))


def exchanged(call: Arguments, other: Arguments, places: Collection[Hashable]) -> Iterator[Arguments]:
    """For each of the ``places`` from ``differences``: the call with the other's value there."""
    for place in places:
        if isinstance(place, tuple) and place[-1] != _SHAPE:
            first, *rest = place
            if isinstance(first, int):
                yield Arguments(_exchanged(call.args, other.args, place), call.kwargs)
            else:
                value = _exchanged(call.kwargs[first], other.kwargs[first], rest)
                yield Arguments(call.args, {**call.kwargs, first: value})


def _exchanged(value: Any, other: Any, path: Sequence[Any]) -> Any:
    if not path:
        return other
    first, *rest = path
    if isinstance(value, Mapping):
        return {**value, first: _exchanged(value[first], other[first], rest)}
    return type(value)(
        _exchanged(item, other[index], rest) if index == first else item for index, item in enumerate(value)
    )


# --- arguments --------------------------------------------------------------------------------------------------------


def _is_ragged(value: Any) -> bool:
    """One tensor per member, whose shapes may differ."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, torch.Tensor) for item in value)


def _signature(value: Any, members: int) -> Hashable:
    if isinstance(value, torch.Tensor):
        where = value.dtype, value.device
        if value.ndim and value.shape[0] != members:
            return "common", where, tuple(value.shape)
        return "member", where, value.ndim, tuple(value.shape[1:])
    if _is_ragged(value) and len(value) == members:
        return "ragged", value[0].dtype, value[0].device, value[0].ndim
    if isinstance(value, list | tuple):
        return type(value), tuple(_signature(item, members) for item in value)
    if isinstance(value, Mapping):
        return tuple((name, _signature(item, members)) for name, item in value.items())
    plain = value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device)
    return (type(value), value) if plain else ("object", id(value))


def _join(values: Sequence[Any], members: int) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        if first.ndim == 0:  # a time step for all members
            return torch.cat([value.expand(members) for value in values])
        if first.shape[0] == members:
            return torch.cat(list(values))
        if all(value is first or torch.equal(value, first) for value in values):  # positions, say
            return first
        raise CannotJoin("an argument that belongs to no member differs")
    if _is_ragged(first) and len(first) == members:
        return [tensor for value in values for tensor in value]
    if isinstance(first, list | tuple):
        return type(first)(_join(items, members) for items in zip(*values, strict=True))
    if isinstance(first, Mapping):
        return {name: _join([value[name] for value in values], members) for name in first}
    return first


def _differences(
    place: tuple[Hashable, ...], one: Any, other: Any, members: int, proven: Collection[Hashable]
) -> Iterator[Hashable]:
    if one is other:
        return
    if isinstance(one, torch.Tensor):
        if place not in proven and not torch.equal(one, other):
            yield COMMON if one.ndim and one.shape[0] != members else place
    elif _is_ragged(one) and len(one) == members:
        same_shapes = [item.shape for item in one] == [item.shape for item in other]
        if not same_shapes and (*place, _SHAPE) not in proven:  # padding is another matter than values
            yield (*place, _SHAPE)
        if place not in proven and not (same_shapes and all(map(torch.equal, one, other))):
            yield place
    elif isinstance(one, list | tuple | Mapping):
        keys: Iterable[Any] = one if isinstance(one, Mapping) else range(len(one))
        for key in keys:
            yield from _differences((*place, key), one[key], other[key], members, proven)


# --- results ----------------------------------------------------------------------------------------------------------

_SPLIT, _COMMON, _RAGGED, _LEFT_OUT = "split", "common", "ragged", "left out"
_Layout = Any
"""One of these words, or the container of its items' layouts."""


def _layout(alone: Any, together: Any, members: int) -> _Layout:
    if isinstance(alone, torch.Tensor):
        if alone.shape == together.shape:
            return _COMMON
        if alone.ndim and alone.shape[0] == members and together.shape == (2 * members, *alone.shape[1:]):
            return _SPLIT
        raise CannotJoin(f"{tuple(alone.shape)} alone is {tuple(together.shape)} for two")
    if isinstance(alone, Mapping):
        return {
            name: _LEFT_OUT if name in _NOT_PASSED_ON else _layout(value, together[name], members)
            for name, value in alone.items()
        }
    if _is_ragged(alone) and len(alone) == members and len(together) == 2 * members:
        return _RAGGED
    if isinstance(alone, list | tuple):
        if len(alone) != len(together):
            raise CannotJoin(f"{len(alone)} values alone are {len(together)} for two")
        return [_layout(value, other, members) for value, other in zip(alone, together, strict=True)]
    if alone is None or (isinstance(alone, bool | int | float | str) and alone == together):
        return _COMMON
    raise CannotJoin(f"a {type(alone).__name__} cannot be taken apart")


def _part(value: Any, layout: _Layout, start: int, members: int) -> Any:
    if layout == _COMMON:
        return value
    if layout == _LEFT_OUT:
        return None
    if layout in (_SPLIT, _RAGGED):
        return value[start : start + members]
    if isinstance(value, Mapping):  # of transformers or diffusers, whose classes take their fields by name
        return type(value)(**{name: _part(value[name], inner, start, members) for name, inner in layout.items()})
    return type(value)(_part(item, inner, start, members) for item, inner in zip(value, layout, strict=True))


def _compare(alone: Any, part: Any) -> None:
    """Raises ``CannotJoin`` where they differ by more than rounding."""
    if isinstance(alone, torch.Tensor):
        if alone.shape != part.shape or not _close(alone, part):
            raise CannotJoin("a member's result is another one in company")
    elif isinstance(alone, Mapping):
        for name, value in alone.items():
            if name not in _NOT_PASSED_ON:
                _compare(value, part[name])
    elif isinstance(alone, list | tuple):
        for value, other in zip(alone, part, strict=True):
            _compare(value, other)


def _floats(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if name not in _NOT_PASSED_ON:
                yield from _floats(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _floats(item)


def _distance(one: Any, other: Any) -> float:
    """Infinite between results of other shapes."""
    pairs = list(zip(_floats(one), _floats(other), strict=False))
    if any(left.shape != right.shape for left, right in pairs):
        return math.inf
    return math.sqrt(sum(float((left.double() - right.double()).square().sum()) for left, right in pairs))


def _close(alone: torch.Tensor, part: torch.Tensor) -> bool:
    if not alone.is_floating_point():
        return torch.equal(alone, part)
    exact, other = alone.double(), part.double()
    distance = torch.linalg.vector_norm(exact - other)
    return bool(distance <= _TOLERANCE.get(alone.dtype, _ROUGH) * torch.linalg.vector_norm(exact))

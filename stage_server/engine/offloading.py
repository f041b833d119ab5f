"""Weights that are on the device only while they are computed with: a component's groups, one after another.

A group is a repeated block, or a layer. It comes when its module is called and goes when that has computed; on CUDA the
one that followed it the last time is copied meanwhile, so that two are there at once. What belongs to no group stays on
the device: embeddings beside the blocks, tensors that two layers share.

Not diffusers' group offloading: its hooks replace ``forward``, which the doubles of a module tree (``step_cache``) take
for theirs, and do not know bitsandbytes' weights. These are torch's own hooks, which doubles share, and move weights as
``HostCopy`` does, whatever their format.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch.nn import Module, ModuleList, MultiheadAttention

from stage_server.engine.base import LoadError
from stage_server.engine.leaves import Place, composed, is_composed, leaves, put, rebuilt, tensors
from stage_server.engine.weight_cache import HostCopy
from stage_server.offload import Offload, Offloads

_log = logging.getLogger(__name__)

AT_ONCE = 2
"""Groups on the device: one computes, the next one comes."""


class Held(NamedTuple):
    """Bytes of one component's weights."""

    device: int
    """At once, at most."""
    copied: int
    """To the device, for each call."""


class Split(NamedTuple):
    rest: list[torch.Tensor]
    groups: list[tuple[Module, list[torch.Tensor]]]


def named(offloads: Offloads, modules: Iterable[str]) -> dict[str, Offload]:
    """Those that change something. ``modules``: components with weights. Raises ``LoadError`` for one that is none."""
    able = sorted(modules)
    for component, level in offloads.items():
        if component not in able and level is not Offload.NONE:
            raise LoadError(
                f"--offload {component}={level}: the model has no component {component!r} with weights; it has "
                f"{', '.join(able)}"
            )
    return {component: level for component, level in offloads.items() if level is not Offload.NONE}


def check_possible(
    offloads: Offloads, device: torch.device, dtype: torch.dtype, compiled: Iterable[str], configs: Mapping[str, Any]
) -> None:
    """``compiled``: components that are. Raises ``LoadError`` for what excludes each other."""
    if both := sorted(offloads.keys() & set(compiled)):
        raise LoadError(
            f"--offload {both[0]}={offloads[both[0]]} and --compile exclude each other: compiled code takes weights to "
            "stay where they are; leave one of them out"
        )
    for component in offloads:
        if configs[component].get("force_upcast") and dtype is torch.float16:
            raise LoadError(
                f"--offload {component}={offloads[component]}: it is turned into float32 for its calls, as float16 "
                "overflows there; take --dtype bfloat16, or leave it out"
            )
    if offloads and device.type != "cuda":
        _log.warning("--offload on a %s only copies within the host's memory: nothing is saved", device.type)


def split(module: Module, level: Offload) -> Split:
    """What stays on the device, and what comes and goes. Raises ``LoadError`` where nothing would."""
    uses = Counter(
        id(tensor)
        for each in module.modules()
        for tensor in chain(each._parameters.values(), each._buffers.values())
        if tensor is not None
    )
    kept = {tensor for tensor, count in uses.items() if count > 1}
    kept |= {id(tensor) for tensor in [*module.parameters()][:1]}  # a module is asked for its device, and looks there
    groups: list[tuple[Module, list[torch.Tensor]]] = []
    moved: set[int] = set()
    parts = {id(part): part for part in _parts(module, level)}.values()
    owners = Counter(id(tensor) for part in parts for tensor in tensors(part))
    kept |= {tensor for tensor, count in owners.items() if count > 1}  # of a layer that two blocks have
    for part in parts:
        members = [tensor for tensor in tensors(part) if id(tensor) not in kept]
        if any(isinstance(tensor, torch.nn.Parameter) for tensor in members):
            groups.append((part, members))
            moved.update(map(id, members))
    if len(groups) <= AT_ONCE:
        raise LoadError(
            f"nothing is saved by offloading it by {level}: {type(module).__name__} has {len(groups)} such groups, and "
            f"{AT_ONCE} are on the device at once"
        )
    return Split([tensor for tensor in tensors(module) if id(tensor) not in moved], groups)


def held(parts: Split, nbytes: Callable[[torch.Tensor], int]) -> Held:
    """``nbytes``: of one tensor."""
    sizes = sorted(sum(map(nbytes, members)) for _, members in parts.groups)
    return Held(sum(map(nbytes, parts.rest)) + sum(sizes[-AT_ONCE:]), sum(sizes))


def true_bytes(tensor: torch.Tensor) -> int:
    """Of what is loaded, whatever its format."""
    return sum(leaf.nbytes for leaf in leaves(tensor))


@dataclass(slots=True, eq=False)
class _Group:
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Tensor, and its data in host memory."""
    places: list[Place] = field(default_factory=list)
    there: list[torch.Tensor] = field(default_factory=list)
    """Data on the device, of each of ``pairs``. Held: a layer that casts its weights for a call lets go of them while
    the device has yet to read them, and the next group would be copied over them."""
    is_on: bool = False
    come: Any = None
    """The event after which it is there; None on a processor."""
    computed: Any = None
    """The event after which nothing reads it any more."""

    def bring(self, fetch: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.is_on = True
        try:
            for tensor, kept in self.pairs:
                self.there.append(fetch(kept))
                tensor.data = self.there[-1]
            for layer, name, whole in self.places:
                put(layer, name, rebuilt(whole, fetch))
        except BaseException:
            self.put_back()
            raise

    def put_back(self) -> None:
        for tensor, kept in self.pairs:
            tensor.data = kept
        for layer, name, whole in self.places:
            put(layer, name, whole)
        self.there.clear()
        self.is_on = False
        self.come = self.computed = None

    def uncast(self) -> None:
        """What came is in its place again: a layer that casts its weights has left copies there."""
        for (tensor, _), data in zip(self.pairs, self.there, strict=False):  # none of a group that did not come
            tensor.data = data


class Offloaded:
    """A component whose groups come and go, until ``close``. It is called by one thread at a time."""

    def __init__(self, copy: HostCopy, level: Offload, device: torch.device) -> None:
        """What stays is on the device afterwards. Raises ``LoadError`` or ``torch.OutOfMemoryError``."""
        self._device = device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        module = copy.component
        parts = split(module, level)
        self.held = held(parts, true_bytes)
        of = _by_tensor(copy)
        self._groups = [_group(members, of) for _, members in parts.groups]
        self._rest = _group(parts.rest, of)
        self._next: dict[_Group, _Group] = {}
        """Which came after it the last time."""
        self._last: _Group | None = None
        self._leaving: _Group | None = None
        """Has computed, as far as the host knows, and is there still."""
        self._hooks: list[Any] = []
        if self._stream is not None:
            self._bring(self._rest)
            self._rest.come.synchronize()
            for data in self._rest.there:  # the same for what stays, of which nobody knows when it is read
                data.record_stream(torch.cuda.default_stream(device))
            self._rest.there.clear()
        for (part, _), group in zip(parts.groups, self._groups, strict=True):
            self._hooks.append(part.register_forward_pre_hook(_Before(self, group)))
            self._hooks.append(part.register_forward_hook(_After(self, group), always_call=True))

    def close(self) -> None:
        """All weights are in host memory afterwards, and stay there. Nothing computes with them."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._stream is not None:
            torch.cuda.synchronize(self._device)
        for group in (*self._groups, self._rest):
            if group.is_on:
                group.put_back()

    def begin(self, group: _Group) -> None:
        """Before its module computes."""
        if self._last is not None:
            self._next[self._last] = group
        self._last = group
        if self._leaving is group:
            self._leaving = None
        if not group.is_on:
            for other in self._groups:
                if other.is_on:  # others were expected, or a call has ended with an error
                    self._drop(other)
            self._bring(group)
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_event(group.come)

    def end(self, group: _Group) -> None:
        """After its module was given to the device. Waits until the group before it has computed, and no longer."""
        if self._stream is None:
            group.put_back()
            return
        group.uncast()
        group.computed = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        group.computed.record(torch.cuda.current_stream(self._device))
        if self._leaving is not None:
            self._drop(self._leaving)
        self._leaving = group
        following = self._next.get(group)
        if following is not None and not following.is_on:
            self._bring(following)

    def _bring(self, group: _Group) -> None:
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            group.bring(self._fetch)
        if self._stream is not None:
            group.come = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            group.come.record(self._stream)

    def _drop(self, group: _Group) -> None:
        """Once nothing reads or writes it: its memory is taken for another one at once."""
        if self._leaving is group:
            self._leaving = None
        if group.come is not None:
            group.come.synchronize()
        if group.computed is not None:
            group.computed.synchronize()
        group.put_back()

    def _fetch(self, kept: torch.Tensor) -> torch.Tensor:
        return kept.clone() if self._stream is None else kept.to(self._device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class _Before:
    owner: Offloaded
    group: _Group

    def __call__(self, _module: Module, _given: tuple[Any, ...]) -> None:
        self.owner.begin(self.group)


@dataclass(frozen=True, slots=True)
class _After:
    owner: Offloaded
    group: _Group

    def __call__(self, _module: Module, _given: tuple[Any, ...], _result: object) -> None:
        self.owner.end(self.group)


def _parts(module: Module, level: Offload) -> Iterator[Module]:
    """Modules that are called, and together hold what is to come and go."""
    for child in module.children():
        if level is Offload.BLOCK and isinstance(child, ModuleList):
            for block in child.children():  # some lists have None in a place
                yield from (block,) if _is_called(block) else _parts(block, level)
        elif level is Offload.LEAF and _is_layer(child):
            yield child
        else:
            yield from _parts(child, level)


def _is_called(module: Module) -> bool:
    """Not a mere container of others."""
    return type(module).forward is not Module.forward


def _is_layer(module: Module) -> bool:
    """Or one that computes with the weights of its inner layers without calling them."""
    return isinstance(module, MultiheadAttention) or next(module.children(), None) is None


def _by_tensor(copy: HostCopy) -> dict[int, tuple[torch.Tensor, torch.Tensor] | Place]:
    """What of the copy belongs to a tensor of the component, by its id. On a processor the component is the copy."""
    module = copy.component
    pairs = copy.tensors or [(tensor, tensor.data) for tensor in tensors(module) if not is_composed(tensor)]
    places = copy.composed or composed(module)
    return {id(tensor): (tensor, kept) for tensor, kept in pairs} | {id(place[2]): place for place in places}


def _group(members: Iterable[torch.Tensor], of: Mapping[int, tuple[torch.Tensor, torch.Tensor] | Place]) -> _Group:
    group = _Group()
    for tensor in members:
        found = of[id(tensor)]
        if len(found) == 2:
            group.pairs.append(found)
        else:
            group.places.append(found)
    return group

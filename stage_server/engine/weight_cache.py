"""Weights in host memory: of roles given up, of roles that may come, and of those on the device, which are given up at
once if a copy is here still. A role in host memory is copied to the device instead of read from disk.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import torch

from stage_server.engine.leaves import Place, composed, is_composed, leaves, put, rebuilt, tensors
from stage_server.engine.leaves import nbytes as weight_bytes

_log = logging.getLogger(__name__)

NOMINAL_BYTES = 16 << 20
"""What a component without weights (a tokenizer) counts as: about what the larger ones take."""
DEFAULT_SHARE = 0.25
"""Of the host memory that is free at start, kept for weights where nobody says how much."""
SPARED_BYTES = 1 << 30
"""Of host memory, left to everybody else whatever the limit says: several servers share a machine."""

_PAGE_BYTES = 4096
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class HostCopy:
    """A component whose weights are in host memory, and perhaps on the device too."""

    component: Any
    nbytes: int
    tensors: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
    """Weights and buffers of the component, each with its data in host memory; none where the host is the device."""
    composed: tuple[Place, ...] = ()
    """Quantised weights in host memory, and where they belong: on the device another takes the place of each."""

    def to_device(self, device: torch.device) -> None:
        """Returns when every weight is there. The copies go on the current stream. Raises ``OutOfMemoryError``."""
        came: list[torch.Tensor] = []

        def fetch(kept: torch.Tensor) -> torch.Tensor:
            came.append(kept.to(device, non_blocking=True))
            return came[-1]

        try:
            for tensor, kept in self.tensors:
                tensor.data = fetch(kept)
            for layer, name, kept_whole in self.composed:
                put(layer, name, rebuilt(kept_whole, fetch))
        except BaseException:
            self.to_host()
            raise
        if came:
            torch.cuda.current_stream(device).synchronize()
        for data in came:
            # Its memory belongs to this stream. A layer that casts its weights for a call lets go of them while the
            # device has yet to read them on the stream of jobs, and the next copies here would be put over them.
            data.record_stream(torch.cuda.default_stream(device))

    def to_host(self) -> None:
        """Free the device's memory at once: nothing is copied, as nobody changes weights."""
        for tensor, kept in self.tensors:
            tensor.data = kept
        for layer, name, kept_whole in self.composed:
            put(layer, name, kept_whole)
        if self.tensors or self.composed:
            self.component.to("cpu")  # what was added to it since


def host_copy(component: Any, device: torch.device, *, pinned: bool) -> HostCopy:
    """``component``, wherever it is now, in host memory: ``pinned`` where the ``device`` copies from it.

    Raises ``MemoryError`` or ``RuntimeError`` without room for it.
    """
    if not isinstance(component, torch.nn.Module):
        return HostCopy(component, NOMINAL_BYTES)
    if device.type != "cuda":
        for tensor in tensors(component):
            for leaf in leaves(tensor):
                _read(leaf)
        return HostCopy(component, weight_bytes(component))
    sizes: list[int] = []

    def on_host(leaf: torch.Tensor) -> torch.Tensor:
        kept = torch.empty_like(leaf, device="cpu", pin_memory=pinned)
        sizes.append(_allocated(kept.nbytes) if pinned else kept.nbytes)
        return kept.copy_(leaf)

    pairs, places = [], []
    for tensor in tensors(component):
        if not is_composed(tensor):
            kept = on_host(tensor.data)
            tensor.data = kept
            pairs.append((tensor, kept))
    for layer, name, parameter in composed(component):
        places.append((layer, name, rebuilt(parameter, on_host)))
        put(*places[-1])
    return HostCopy(component, sum(sizes), tuple(pairs), tuple(places))


class WeightCache:
    """At most ``limit`` bytes; the component not used for longest goes first. 0 keeps nothing. From any thread.

    One for all engines of a process, which name what they keep so that equal components have one name.
    """

    def __init__(self, limit: int, free: Callable[[], int] | None = None) -> None:
        """``free``: bytes of host memory that may be had now; by default what the system says."""
        self._limit = limit
        self._free = free or free_bytes
        self._kept: OrderedDict[Hashable, HostCopy] = OrderedDict()
        self._lock = RLock()

    @property
    def used(self) -> int:
        """Bytes."""
        with self._lock:
            return sum(copy.nbytes for copy in self._kept.values())

    def holds(self, names: Iterable[Hashable]) -> bool:
        return all(name in self._kept for name in names)

    def make_room(self, nbytes: int, spared: Iterable[Hashable] = (), *, is_there: bool = False) -> bool:
        """Whether so many bytes more may be kept, after others but ``spared`` have gone for them.

        ``is_there``: they take host memory already.
        """
        keep = set(spared)
        with self._lock:
            going = [name for name in self._kept if name not in keep]
            if nbytes > self._limit - sum(self._kept[name].nbytes for name in keep & self._kept.keys()):
                return False
            while self.used + nbytes > self._limit:
                self.forget(going.pop(0))
        return is_there or self._free() - nbytes >= SPARED_BYTES

    def put(self, name: Hashable, copy: HostCopy, spared: Iterable[Hashable] = ()) -> bool:
        """Keep ``copy``, which takes host memory already, if the limit allows."""
        with self._lock:
            self.forget(name)
            if not self.make_room(copy.nbytes, spared, is_there=True):
                return False
            self._kept[name] = copy
            return True

    def get(self, name: Hashable) -> HostCopy | None:
        """What is kept; it was used just now."""
        with self._lock:
            copy = self._kept.get(name)
            if copy is not None:
                self._kept.move_to_end(name)
            return copy

    def forget(self, name: Hashable) -> None:
        with self._lock:
            self._kept.pop(name, None)


def default_limit() -> int:
    """Bytes for weights in host memory where nobody says how many."""
    return int(DEFAULT_SHARE * free_bytes())


def free_bytes() -> int:
    """Host memory that may be had without anybody else losing some, in this container if it is one; 0 if unknown."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        found = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return found if limit == "max" else max(0, min(found, int(limit) - int(used)))
    except (OSError, ValueError):
        return found


def _read(tensor: torch.Tensor) -> None:
    """The libraries only map files; the first job would wait for the disk."""
    if tensor.is_contiguous() and tensor.numel() and not tensor.is_meta:
        tensor.detach().view(-1).view(torch.uint8)[::_PAGE_BYTES].sum()


def _allocated(nbytes: int) -> int:
    """torch rounds pinned memory up to a power of two."""
    return 1 << max(0, nbytes - 1).bit_length()

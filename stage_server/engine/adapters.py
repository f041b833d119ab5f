"""The adapters that a server's operator allows: checked when it starts, resident as long as there is room.

They lie on the device beside the weights, in the weights' dtype, at most ``limit`` bytes of them; the one that was
used longest ago goes first. Every call asks for its own anew, so the bound holds whatever interleaves. Those of jobs
that wait for the device are read into host memory meanwhile, at most as many.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch
from xxhash import xxh3_128

from stage_server.engine.adapter_file import AdapterReader, BadAdapter
from stage_server.engine.adapter_source import locate
from stage_server.engine.base import BadJob, LoadError
from stage_server.engine.low_rank import LowRank, Patch, Patches, nbytes, switched_on
from wire.params import Adapter, AdapterUse
from wire.types import Role

_log = logging.getLogger(__name__)

_CHUNK = 1 << 22

Stamp = tuple[int, int]
"""Size and time of the last change."""


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An allowed adapter, as it was when it was checked."""

    path: Path
    stamp: Stamp
    digest: str
    nbytes: Mapping[str, int]
    """Component → bytes on the device."""


class Adapters:
    """Of one model on one device. Thread-safe."""

    def __init__(
        self, sources: Mapping[str, str], reader: AdapterReader, device: torch.device, dtype: torch.dtype, limit: int
    ) -> None:
        """Reads and checks every file. Raises ``LoadError`` for the first that cannot be used."""
        self._reader = reader
        self._device = device
        self._dtype = dtype
        self._limit = limit
        self._files = {name: self._checked(name, source) for name, source in sorted(sources.items())}
        self._resident: OrderedDict[tuple[str, str], Patch] = OrderedDict()
        """(Name, component), used last comes last."""
        self._ahead: OrderedDict[str, Mapping[str, Patch]] = OrderedDict()
        """Name → its parts, read for a job that is about to begin."""
        self._lock = Lock()

    @property
    def components(self) -> frozenset[str]:
        """That some adapter changes."""
        return frozenset(component for file in self._files.values() for component in file.nbytes)

    @property
    def most_bytes(self) -> int:
        """That they can come to take on the device."""
        return min(self._limit, sum(sum(file.nbytes.values()) for file in self._files.values()))

    @property
    def resident(self) -> tuple[tuple[str, str], ...]:
        """(Name, component), used longest ago first."""
        with self._lock:
            return tuple(self._resident)

    def offered(self, roles_of: Callable[[str], Collection[Role]]) -> tuple[Adapter, ...]:
        """As clients and schedulers see them; ``roles_of``: those that compute with a component."""
        return tuple(
            Adapter(name, file.digest, tuple(role for role in Role if self._concerns(file, role, roles_of)))
            for name, file in self._files.items()
        )

    def check(self, uses: Iterable[AdapterUse]) -> None:
        """Raises ``BadJob`` for what this server has not, or not as it was meant, or not room for."""
        needed = 0
        for use in uses:
            file = self._files.get(use.name)
            if file is None:
                raise BadJob(f"There is no LoRA '{use.name}' here; there are {', '.join(self._files) or 'none'}.")
            if file.digest != use.digest:
                raise BadJob(f"The LoRA '{use.name}' is another file here.")
            needed += sum(file.nbytes.values())
        if needed > self._limit:
            raise BadJob(f"These LoRAs take {needed} bytes together, and {self._limit} are allowed.")

    def read_ahead(self, uses: Iterable[AdapterUse], components: Collection[str]) -> None:
        """Those of a job that has yet to wait for the device, where ``load`` would have to read them. Nobody waits for
        it, and what cannot be read is for ``load`` to say."""
        for use in uses:
            file = self._files[use.name]
            wanted = {(use.name, component) for component in file.nbytes if component in components}
            with self._lock:
                is_here = use.name in self._ahead or wanted <= self._resident.keys()
            if is_here:
                continue
            try:
                read = self._read_again(file)
            except BadAdapter as error:
                _log.debug("adapter %s (%s): it %s", use.name, file.path, error)
                continue
            with self._lock:
                self._ahead[use.name] = read
                while sum(sum(self._files[name].nbytes.values()) for name in self._ahead) > self._limit:
                    self._ahead.popitem(last=False)

    def load(self, uses: Collection[AdapterUse], components: Collection[str]) -> None:
        """Ahead of ``applied``, so that a job whose adapters cannot be had ends before it begins. Raises ``BadJob``."""
        if uses:
            self._patches(uses, components)

    def applied(self, uses: Collection[AdapterUse], components: Collection[str]) -> AbstractContextManager[None]:
        """Within, this thread's calls of ``components``, which are resident, are made with ``uses``. Raises ``BadJob``
        if one has to be loaded and cannot be."""
        return switched_on(self._patches(uses, components))

    def keep_only(self, components: Collection[str]) -> None:
        """The weights of the others have left the device, and what belongs to them goes too."""
        with self._lock:
            for key in [key for key in self._resident if key[1] not in components]:
                del self._resident[key]
            self._ahead.clear()

    def _patches(self, uses: Collection[AdapterUse], components: Collection[str]) -> Patches:
        patches: dict[str, list[tuple[Patch, float]]] = {}
        wanted = {
            (use.name, component): use.scale
            for use in uses
            for component in self._files[use.name].nbytes
            if component in components
        }
        with self._lock:
            for key, scale in wanted.items():
                if key not in self._resident:
                    self._load(key, wanted)
                self._resident.move_to_end(key)
                patches.setdefault(key[1], []).append((self._resident[key], scale))
            for use in uses:
                self._ahead.pop(use.name, None)
        return patches

    def _load(self, key: tuple[str, str], wanted: Collection[tuple[str, str]]) -> None:
        name, component = key
        file = self._files[name]
        self._make_room(file.nbytes[component], wanted)
        try:
            read = self._ahead.get(name) or self._read_again(file)
        except BadAdapter as error:
            _log.error("adapter %s (%s): it %s", name, file.path, error)
            raise BadJob(f"The LoRA '{name}' cannot be used: it {error}.") from error
        self._resident[key] = {layer: self._placed(part) for layer, part in read[component].items()}
        _log.info("adapter %s is resident for the %s: %d bytes", name, component, file.nbytes[component])

    def _read_again(self, file: AdapterFile) -> Mapping[str, Patch]:
        """Raises ``BadAdapter``, also where it is not what was checked and announced."""
        try:
            has_changed = _stamp(file.path) != file.stamp and digest_of(file.path) != file.digest
        except OSError as error:
            raise BadAdapter("cannot be read any more") from error
        if has_changed:
            raise BadAdapter("has changed since the server was started")
        return self._reader.read(file.path)

    def _make_room(self, needed: int, wanted: Collection[tuple[str, str]]) -> None:
        """``check`` has seen to it that those wanted together fit."""
        used = sum(map(nbytes, self._resident.values()))
        for key in [key for key in self._resident if key not in wanted]:
            if used + needed <= self._limit:
                return
            used -= nbytes(self._resident.pop(key))

    def _placed(self, part: LowRank) -> LowRank:
        return part.to(self._device, self._dtype)

    def _checked(self, name: str, source: str) -> AdapterFile:
        path = locate(source)
        try:
            stamp, patches = _stamp(path), self._reader.read(path)
            sizes = {component: self._placed_bytes(patch) for component, patch in patches.items()}
            if sum(sizes.values()) > self._limit:
                raise LoadError(
                    f"adapter {name} ({path}) takes {sum(sizes.values())} bytes, and --adapter-bytes is {self._limit}"
                )
            return AdapterFile(path, stamp, digest_of(path), sizes)
        except BadAdapter as error:
            raise LoadError(f"adapter {name} ({path}): it {error}") from error
        except OSError as error:
            raise LoadError(f"adapter {name} ({path}) cannot be read: {error.strerror or error}") from error

    def _placed_bytes(self, patch: Patch) -> int:
        itemsize = torch.empty((), dtype=self._dtype).itemsize
        tensors = (tensor for part in patch.values() for tensor in (part.down, part.up, part.bias))
        return sum(tensor.numel() * itemsize for tensor in tensors if tensor is not None)

    def _concerns(self, file: AdapterFile, role: Role, roles_of: Callable[[str], Collection[Role]]) -> bool:
        return any(role in roles_of(component) for component in file.nbytes)


def _stamp(path: Path) -> Stamp:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def digest_of(path: Path) -> str:
    digest = xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()

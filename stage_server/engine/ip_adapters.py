"""IP-Adapters that a server's operator allows: pictures that prompt. Of families whose denoiser is a UNet.

diffusers switches one on by giving the denoiser other attention processors, for whoever calls it. Here a job that asks
for one has a denoiser of its own: another tree of modules over the same weights, with the adapter's beside them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.embeddings import ImageProjection
from safetensors import SafetensorError, safe_open

from stage_server.engine.adapter_source import locate
from stage_server.engine.adapters import digest_of
from stage_server.engine.base import BadJob, LoadError
from stage_server.engine.default_dtype import guarded
from stage_server.engine.leaves import tensors
from stage_server.engine.port import JobPort, original
from wire.params import IPAdapterUse
from wire.types import Role

WORKFLOW_INPUT = "ip_adapter_image"

_PLAIN, _PLUS = "proj.weight", "latents"
"""Of the projection of the picture's embedding, by which the kinds are told apart. Those for faces read no pictures."""

StateDict = dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    digest: str
    nbytes: int
    is_plain: bool


class IPAdapters:
    """Of one model on one device. Thread-safe."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        """Looks into every file. Raises ``LoadError``."""
        self._files = {name: _checked(name, source) for name, source in sorted(sources.items())}
        self._trees: WeakKeyDictionary[torch.nn.Module, dict[str, torch.nn.Module]] = WeakKeyDictionary()
        """Denoiser → name → its tree with that adapter."""
        self._doubled: WeakKeyDictionary[torch.nn.Module, torch.nn.Module] = WeakKeyDictionary()
        """Tree of a job → the denoiser whose weights it has."""
        self._lock = Lock()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    @property
    def revisions(self) -> dict[str, str]:
        """For the model's key."""
        return {f"ip_adapter:{name}": file.digest for name, file in self._files.items()}

    @property
    def most_bytes(self) -> int:
        """That they can come to take on the device."""
        return sum(file.nbytes for file in self._files.values())

    def clear(self) -> None:
        with self._lock:
            self._trees.clear()

    def denoiser(self, module: torch.nn.Module) -> torch.nn.Module:
        """That of which ``module`` is a job's own tree, or ``module`` itself."""
        return self._doubled.get(module, module)

    def read_ahead(self, denoiser: torch.nn.Module, use: IPAdapterUse) -> None:
        """Of a job that does not have the device yet. Raises ``BadJob``.

        It makes modules, which come without weights while another thread reads some: see ``default_dtype``.
        """
        with self._lock:
            is_here = use.name in self._trees.get(denoiser, ())
        if not is_here:
            with guarded(nullcontext):  # before the lock, for which jobs wait that have the device
                self._tree(denoiser, use.name)

    def place(self, view: Any, use: IPAdapterUse | None, role: Role, port: JobPort) -> None:
        """In a job's view. Where no denoiser is loaded, one that only says what the adapter reads of a picture."""
        if use is None:
            return
        if role is Role.DIT:
            view.unet = port.stand_in(self._of_job(original(view.unet), use))
        elif role is Role.ENCODER:
            view.unet = _told(view.unet, is_plain=self._files[use.name].is_plain)

    def _of_job(self, denoiser: torch.nn.Module, use: IPAdapterUse) -> Any:
        tree = _same_weights(self._tree(denoiser, use.name))
        for processor in tree.attn_processors.values():
            if hasattr(processor, "to_k_ip"):
                processor.scale = [use.scale]
        self._doubled[tree] = denoiser
        return tree

    def _tree(self, denoiser: torch.nn.Module, name: str) -> torch.nn.Module:
        with self._lock:
            known = self._trees.setdefault(denoiser, {})
            if name not in known:
                known[name] = self._adapted(denoiser, name)
            return known[name]

    def _adapted(self, denoiser: torch.nn.Module, name: str) -> Any:
        file = self._files[name]
        if digest_of(file.path) != file.digest:
            raise BadJob(f"The IP-Adapter '{name}' cannot be used: it has changed since the server was started.")
        tree = _same_weights(denoiser)
        tree._load_ip_adapter_weights([_read(file.path)], low_cpu_mem_usage=False)
        return tree


def _same_weights(module: Any) -> Any:
    """Another tree of modules over the very same parameters and buffers."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors(module)}
    config = memo[id(module._internal_dict)] = FrozenDict(module.config)
    vars(config).update(vars(module.config))  # an adapter says there, and there alone, that the denoiser reads it
    return copy.deepcopy(module, memo)


def _told(stub: Any, *, is_plain: bool) -> Any:
    """``stub`` stands for a denoiser whose adapter reads the picture's embedding, or what its encoder hides."""
    layer = ImageProjection.__new__(ImageProjection) if is_plain else object()
    found = copy.copy(stub)
    found.encoder_hid_proj = _Projections([layer])
    return found


@dataclass(frozen=True, slots=True)
class _Projections:
    image_projection_layers: list[Any]


def _checked(name: str, source: str) -> _File:
    path = locate(source)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            keys = list(file.keys())
        projection = {key.removeprefix("image_proj.") for key in keys if key.startswith("image_proj.")}
        if not any(key.startswith("ip_adapter.") for key in keys) or not projection & {_PLAIN, _PLUS}:
            raise LoadError(f"IP-Adapter {name} ({path}) is none that reads pictures: it has {', '.join(keys[:3])}, …")
        return _File(path, digest_of(path), path.stat().st_size, _PLAIN in projection)
    except (OSError, SafetensorError) as error:
        raise LoadError(f"IP-Adapter {name} ({path}) cannot be read: {error}") from error


def _read(path: Path) -> StateDict:
    state: StateDict = {"image_proj": {}, "ip_adapter": {}}
    with safe_open(path, framework="pt", device="cpu") as file:
        for key in file.keys():  # noqa: SIM118 # no mapping
            part, _, rest = key.partition(".")
            if part in state:
                state[part][rest] = file.get_tensor(key)
    return state

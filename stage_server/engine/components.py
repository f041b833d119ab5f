"""Which components of a pipeline are resident: loads, unloads and puts stubs where weights are absent."""

from __future__ import annotations

import gc
import logging
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers import ModularPipeline
from diffusers.configuration_utils import ConfigMixin
from diffusers.guiders.guider_utils import BaseGuidance

from stage_server.engine import offloading
from stage_server.engine.attention import set_backend
from stage_server.engine.base import DeviceTurn, LoadError
from stage_server.engine.causes import cause, refuse_gaps
from stage_server.engine.checkpoint import Checkpoint, ComponentFiles
from stage_server.engine.common import CommonComponents, Holder, kind_of
from stage_server.engine.default_dtype import guarded
from stage_server.engine.leaves import nbytes
from stage_server.engine.load_options import LoadOptions, NoRoom
from stage_server.engine.low_rank import make_adaptable
from stage_server.engine.offloading import Held, Offloaded
from stage_server.engine.predicted_bytes import predicted
from stage_server.engine.quantised import check_possible, named, quantise
from stage_server.engine.split import DENOISERS
from stage_server.engine.staging import computed
from stage_server.engine.step_cache import check_possible as check_step_cache
from stage_server.engine.stubs import ComponentStub
from stage_server.engine.tiling import tile
from stage_server.engine.weight_cache import HostCopy, WeightCache, default_limit, host_copy
from stage_server.offload import Offload
from stage_server.step_caches import merged
from stage_server.weight_formats import WeightFormat

_log = logging.getLogger(__name__)


class Components:
    """The loadable components of one pipeline, on one device."""

    def __init__(self, pipeline: ModularPipeline, checkpoint: Checkpoint, options: LoadOptions) -> None:
        self._pipeline = pipeline
        self._checkpoint = checkpoint
        self._options = options
        limit = options.weight_cache_bytes
        self.cache = WeightCache(default_limit() if limit is None else limit)
        """In host memory; of all engines of a process once they are acquainted."""
        self._copies = torch.cuda.Stream(options.device) if options.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.files: Mapping[str, ComponentFiles] = {
            name: checkpoint.component_files(spec)
            for name in pipeline.pretrained_component_names
            if _can_load(spec := pipeline.get_component_spec(name))
        }
        self.configs: Mapping[str, Mapping[str, Any]] = {name: files.config() for name, files in self.files.items()}
        wanted = {**checkpoint.formats(), **options.formats}
        modules = [name for name, files in self.files.items() if files.is_module]
        self.formats = named(wanted, self.configs, modules)
        self.offloads = offloading.named({**checkpoint.offloads(), **options.offloads}, modules)
        self.step_caches = merged(checkpoint.step_caches(), options.step_caches)
        if options.loads:
            check_possible(self.formats, options.device, str(options.dtype).removeprefix("torch."))
            compiled = DENOISERS if options.compiler is not None else ()
            offloading.check_possible(self.offloads, options.device, options.dtype, compiled, self.configs)
        self.attention_backend = options.attention_backend or ""
        """Of denoisers that are loaded from now on; empty: diffusers' own choice."""
        self.vae_tile = options.vae_tile if isinstance(options.vae_tile, int) else None
        """Pixels; to be chosen, if it is to be, before anything is loaded."""
        self._sizes: dict[str, Held] = {}
        self._offloaded: dict[str, Offloaded] = {}
        """Components that are loaded, of those that ``offloads`` names."""
        self.resident: frozenset[str] = frozenset()
        self.adapted: frozenset[str] = frozenset()
        """Components that adapters may change, to be named before they are loaded."""
        self._names: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()
        self._common = CommonComponents()
        self._keys: Mapping[str, str] = {}
        """Of components that other models of the process have as well."""
        self._set_stubs(self.files)

    def load_guiders(self) -> None:
        """Some repositories have files for them. They tell what a model can do, before it is loaded."""
        for name, files in self.files.items():
            if issubclass(files.type_hint, BaseGuidance):
                with self._failures_named(name):
                    self._pipeline.update_components(**{name: self._read(name, files)})

    def share(self, keys: Mapping[str, str], common: CommonComponents, cache: WeightCache) -> None:
        """Hold components that have keys in common with other engines, and one limit for what waits in host memory.

        Before anything is loaded.
        """
        self._keys, self._common, self.cache = keys, common, cache

    def shareable(self) -> dict[str, tuple[Hashable, ComponentFiles]]:
        """What no engine changes, for ``common_keys``.

        Denoisers may be compiled or have an attention backend of their own, adapters change weights, quantised files
        load in their own way, weights that come and go do so for one engine, and pipelines turn a VAE that overflows in
        half precision into float32 and back.
        """
        own = {*DENOISERS, *self.adapted, *self.offloads}
        for name, config in self.configs.items():
            if config.get("quantization_config") or config.get("force_upcast"):
                own.add(name)
        names = (name for name, files in self.files.items() if files.is_module and name not in own)
        return {name: (self._kind(name), self.files[name]) for name in names}

    def is_common(self, name: str) -> bool:
        """Other models of the process have it as well."""
        return name in self._keys

    @property
    def common_bytes(self) -> dict[str, tuple[str, int]]:
        """Component → key and bytes of its weights, of those that other models have as well."""
        return {name: (key, self.nbytes(name)) for name, key in self._keys.items()}

    @property
    def resident_bytes(self) -> int:
        """What several models have in common counts for one of them."""
        return sum(self.nbytes(name) for name in tuple(self.resident) if self._is_counted(name))

    @property
    def declared(self) -> frozenset[str]:
        """Components that the model has, and those that its index names and leaves out."""
        pipeline = self._pipeline
        named = (name for name in pipeline.pretrained_component_names if _has_source(pipeline.get_component_spec(name)))
        return frozenset(named) | frozenset(pipeline.config_component_names)

    def adapted_name(self, module: torch.nn.Module) -> str | None:
        """The component, if it was loaded as one that adapters may change."""
        return self._names.get(module)

    @property
    def compiled(self) -> bool:
        return self._options.compiler is not None

    def nbytes(self, name: str) -> int:
        """Bytes of its weights on the device: as predicted, and once it was loaded as measured.

        0 where it has none, or where its files do not tell, which loading them will say.
        """
        return self._held(name).device

    def copied_bytes(self, name: str) -> int:
        """Of weights that are brought to the device for each of its calls; 0 of a component that is there."""
        return self._held(name).copied

    def _held(self, name: str) -> Held:
        if name not in self._sizes:
            try:
                self._sizes[name] = self.predicted_bytes(name)
            except LoadError:
                return Held(0, 0)
        return self._sizes[name]

    def predicted_bytes(self, name: str, form: WeightFormat | None = None, level: Offload | None = None) -> Held:
        """In that format and offloaded so, or as it is here; from its files alone. Raises ``LoadError``."""
        form = form or self.formats.get(name, WeightFormat.NONE)
        level = level or self.offloads.get(name, Offload.NONE)
        return predicted(self.files[name], self.configs[name], form, level, self._options.dtype)

    def host_bytes(self, name: str) -> int:
        """Of all of its weights, which are in host memory before any is on the device."""
        if name not in self.offloads:
            return self.nbytes(name)
        try:
            return self.predicted_bytes(name, level=Offload.NONE).device
        except LoadError:
            return 0

    def are_warm(self, names: Iterable[str]) -> bool:
        """All of them are resident, or in host memory. From any thread."""
        absent = set(names) & set(self.files) - self.resident
        return self.cache.holds(self._kept_as(name) for name in absent if not self._is_elsewhere(name))

    def bytes_to_come(self, name: str) -> int:
        """That loading it would take of the device."""
        return 0 if self._is_elsewhere(name) else self.nbytes(name)

    def preload(self, name: str, among: Iterable[str], turn: DeviceTurn) -> bool:
        """Read ``name`` into host memory, where others but ``among`` make room for it; False if there is none.

        Raises ``LoadError``.
        """
        spared = [self._kept_as(other) for other in among]
        with self._common.moving(self._keys.get(name)), self._failures_named(name):
            if name in self.resident or self._is_elsewhere(name) or self.cache.get(self._kept_as(name)) is not None:
                return True
            if not self.cache.make_room(self.host_bytes(name), spared):
                return False
            return self.cache.put(self._kept_as(name), self._host_copy(name, turn, pinned=True), spared)

    def load(self, name: str, turn: DeviceTurn) -> Any:
        """The component, on the device and not in the pipeline yet. Raises ``LoadError``."""
        key, holder = self._keys.get(name), self._holder(name)
        if key is None:
            return self._load_own(name, turn)
        with self._common.moving(key):
            component = self._common.take(key, holder)
            if component is None:
                component = self._load_own(name, turn)
                self._common.hold(key, component, holder)
            else:
                _log.info("%s of %s is the one of another model", name, self._checkpoint.name)
        return component

    def _load_own(self, name: str, turn: DeviceTurn) -> Any:
        with self._failures_named(name):
            kept_as = self._kept_as(name)
            copy = self.cache.get(kept_as)
            if copy is None:
                is_kept = self._copies is not None and self.cache.make_room(self.host_bytes(name))
                copy = self._host_copy(name, turn, pinned=is_kept or name in self.offloads)
                if is_kept:
                    self.cache.put(kept_as, copy)
            self._to_device(name, copy)
            return copy.component

    def _to_device(self, name: str, copy: HostCopy) -> None:
        if name in self.offloads:
            self._offloaded[name] = Offloaded(copy, self.offloads[name], self._options.device)
            self._sizes[name] = self._offloaded[name].held
            return
        if isinstance(copy.component, torch.nn.Module):
            self._sizes[name] = Held(nbytes(copy.component), 0)
        with nullcontext() if self._copies is None else torch.cuda.stream(self._copies):
            copy.to_device(self._options.device)

    def place(self, components: Mapping[str, Any]) -> None:
        """Make loaded components resident. To be done between two jobs."""
        for name in components.keys() & self._keys.keys():  # another engine's pipeline has named it last
            components[name]._diffusers_load_id = self._pipeline.get_component_spec(name).load_id
        self._pipeline.update_components(**components)
        self.resident |= set(components)
        if self._copies is None:
            for name in components:
                self.cache.forget(self._kept_as(name))  # it is the copy in host memory, and will be again once it goes

    def unload(self, names: Iterable[str], *, keep: bool = True) -> None:
        """Stubs take the places of ``names``, which no job uses. With ``keep`` they stay in host memory, if allowed.

        On a device only what has a copy there does. Memory is free for sure after ``collect``.
        """
        going = sorted(set(names) & self.resident)
        for name in going:
            component = getattr(self._pipeline, name)
            self._pipeline.register_components(**{name: None})
            self._set_stubs((name,))  # at once: jobs of roles that stay may begin while weights are kept on the host
            self._give_up(name, component, keep=keep)
        self.resident -= set(going)

    def discard(self, components: Mapping[str, Any], *, keep: bool) -> None:
        """Loaded components are not wanted after all; with ``keep`` they may stay in host memory."""
        for name, component in components.items():
            self._give_up(name, component, keep=keep)

    def close(self) -> None:
        """Nothing stays resident or kept."""
        self.unload(self.resident, keep=False)
        for name in self.files:
            if not self._is_elsewhere(name):
                self.cache.forget(self._kept_as(name))
        self.collect()

    def computed(self) -> None:
        """Returns when the device has done all that this thread gave it."""
        computed(self._options.device)

    def collect(self) -> None:
        """Give memory back that only cycles of references still hold. Takes a while; no job need wait for it."""
        gc.collect()
        if self._options.device.type == "cuda":
            torch.cuda.empty_cache()

    def _give_up(self, name: str, component: Any, *, keep: bool) -> None:
        if name in self._offloaded:
            self._offloaded.pop(name).close()
        key = self._keys.get(name)
        with self._common.moving(key):
            if key is None or self._common.give_up(key, self._holder(name)):  # otherwise others go on with it
                self._put_away(self._kept_as(name), component, keep=keep)

    def _put_away(self, kept_as: Hashable, component: Any, *, keep: bool) -> None:
        copy = self.cache.get(kept_as)
        if copy is not None:
            copy.to_host()
        elif keep and (self._copies is None or not isinstance(component, torch.nn.Module)):
            self.cache.put(kept_as, host_copy(component, self._options.device, pinned=False))
        if not keep:
            self.cache.forget(kept_as)

    def _holder(self, name: str) -> Holder:
        return Holder(id(self), name)

    def _kept_as(self, name: str) -> Hashable:
        """Its name in host memory: what several models have in common is there once."""
        return self._keys.get(name) or self._holder(name)

    def _is_elsewhere(self, name: str) -> bool:
        """On the device, for whichever model."""
        key = self._keys.get(name)
        return key is not None and self._common.is_held(key)

    def _is_counted(self, name: str) -> bool:
        key = self._keys.get(name)
        return key is None or self._common.counts_for(key, self._holder(name))

    def _kind(self, name: str) -> Hashable:
        variant, dtype = self._pipeline.get_component_spec(name).variant, str(self._options.dtype)
        tiles = self.vae_tile if name == "vae" else ""
        form = f"{dtype} {self.formats.get(name, '')} {tiles}"
        return kind_of(self.files[name], self.configs[name], variant, form)

    def _host_copy(self, name: str, turn: DeviceTurn, *, pinned: bool) -> HostCopy:
        with guarded(turn):
            component = self._read(name, self.files[name])
        try:
            return host_copy(component, self._options.device, pinned=pinned)
        except RuntimeError as error:  # a limit on locked memory, say
            if not pinned:
                raise
            _log.warning("%s is not pinned in host memory, and copied slower: %s", name, error)
            return host_copy(component, self._options.device, pinned=False)

    @contextmanager
    def _failures_named(self, name: str) -> Iterator[None]:
        """Whatever goes wrong → ``LoadError`` with the name of the component."""
        cannot = f"{name} of {self._checkpoint.name} cannot be loaded"
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise NoRoom(f"{name} does not fit into the memory of {self._options.device}") from error
        except LoadError as error:
            raise LoadError(f"{cannot}: {error}") from error
        except Exception as error:  # libraries raise what they like about a broken file, safetensors a bare Exception
            raise LoadError(f"{cannot}: {cause(error, self.files[name])}") from error

    def _read(self, name: str, files: ComponentFiles) -> Any:
        """``from_pretrained`` itself: ``load_components`` turns a failure into a warning and leaves None, and
        ``ComponentSpec.load`` does not tell which weights were not there and have been drawn at random."""
        spec = self._pipeline.get_component_spec(name)
        options: dict[str, Any] = {"revision": files.revision, "local_files_only": files.local_files_only}
        if not files.is_module:
            return spec.load(**options)
        files.verify()
        options |= {"subfolder": spec.subfolder, "variant": spec.variant, "dtype": self._options.dtype}
        if not issubclass(files.type_hint, ConfigMixin):
            options["ignore_mismatched_sizes"] = True  # transformers only logs which they are; they are refused below
        module, report = files.type_hint.from_pretrained(files.repo, output_loading_info=True, **options)
        refuse_gaps(report, type(module).__name__)
        spec.revision = files.revision
        module._diffusers_load_id = spec.load_id  # as ``ComponentSpec.load`` notes it
        if name == "vae" and self.vae_tile is not None:
            tile(module, self.vae_tile)
        if name in self.formats:
            quantise(module, self.formats[name], self._options.device, self._options.dtype)
        if name in self.adapted:
            make_adaptable(name, module)
            self._names[module] = name
        return self._prepare_denoiser(module) if name in DENOISERS else module

    def _prepare_denoiser(self, module: Any) -> Any:
        for level, cache in self.step_caches.items():
            check_step_cache(module, level, cache)
        if self.attention_backend:
            set_backend(module, self.attention_backend)
        if self._options.compiler is not None:
            self._options.compiler.take(module)
        return module

    def _set_stubs(self, names: Iterable[str]) -> None:
        for name in names:
            files = self.files[name]
            if files.is_module:
                setattr(
                    self._pipeline, name, ComponentStub(name, files.type_hint, self.configs[name], self._options.dtype)
                )


def _has_source(spec: Any) -> bool:
    return spec.pretrained_model_name_or_path is not None


def _can_load(spec: Any) -> bool:
    return _has_source(spec) and spec.type_hint is not None

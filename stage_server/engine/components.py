"""Which components of a pipeline are resident: loads, unloads and puts stubs where weights are absent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ModularPipeline

from stage_server.engine.base import LoadError
from stage_server.engine.checkpoint import Checkpoint, ComponentFiles
from stage_server.engine.stubs import ComponentStub
from stage_server.engine.weight_cache import WeightCache

DENOISERS = ("transformer", "unet")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How weights are loaded. ``attention_backend`` and ``compile`` concern the denoiser only."""

    device: torch.device
    dtype: torch.dtype
    compile: bool = False
    attention_backend: str | None = None
    weight_cache_bytes: int = 0


class Components:
    """The loadable components of one pipeline, on one device."""

    def __init__(self, pipeline: ModularPipeline, checkpoint: Checkpoint, options: LoadOptions) -> None:
        self._pipeline = pipeline
        self._checkpoint = checkpoint
        self._options = options
        self._cache = WeightCache(options.weight_cache_bytes)
        self.files: Mapping[str, ComponentFiles] = {
            name: checkpoint.component_files(spec)
            for name in pipeline.pretrained_component_names
            if _can_load(spec := pipeline.get_component_spec(name))
        }
        self.configs: Mapping[str, Mapping[str, Any]] = {name: files.config() for name, files in self.files.items()}
        self.resident: frozenset[str] = frozenset()
        self._set_stubs(self.files)

    @property
    def declared(self) -> frozenset[str]:
        """Components that the model has, and those that its index names and leaves out."""
        pipeline = self._pipeline
        named = (name for name in pipeline.pretrained_component_names if _has_source(pipeline.get_component_spec(name)))
        return frozenset(named) | frozenset(pipeline.config_component_names)

    def load(self, names: Iterable[str]) -> None:
        """Make ``names`` resident as well. Raises ``LoadError``; what was loaded before the failure stays."""
        for name in sorted(set(names) & set(self.files) - self.resident):
            component = self._load_one(name)
            self._pipeline.update_components(**{name: component})
            self.resident |= {name}

    def unload(self, names: Iterable[str], *, keep: bool = True) -> None:
        """Free the device's memory of ``names``; stubs take their places. With ``keep`` the cache has them after."""
        going = sorted(set(names) & self.resident)
        if going:
            for name in going if keep else ():
                self._cache.put(name, getattr(self._pipeline, name))
            self._pipeline.unload_components(going)
            self.resident -= set(going)
            self._set_stubs(going)

    def close(self) -> None:
        """Nothing stays resident or kept."""
        self.unload(self.resident, keep=False)
        self._cache.clear()

    def _load_one(self, name: str) -> Any:
        """``ComponentSpec.load`` and not ``load_components``, which turns a failure into a warning and leaves None."""
        spec = self._pipeline.get_component_spec(name)
        files = self.files[name]
        options: dict[str, Any] = {"revision": files.revision, "local_files_only": files.local_files_only}
        try:
            kept = self._cache.take(name)
            if kept is not None:
                return kept.to(self._options.device) if files.is_module else kept
            if not files.is_module:
                return spec.load(**options)
            module = spec.load(dtype=self._options.dtype, **options).to(self._options.device)
            return self._prepare_denoiser(module) if name in DENOISERS else module
        except torch.OutOfMemoryError as error:
            raise LoadError(f"{name} does not fit into the memory of {self._options.device}") from error
        except (OSError, ValueError, RuntimeError, ImportError, TypeError, AttributeError) as error:
            raise LoadError(f"{name} of {self._checkpoint.name} cannot be loaded: {error}") from error

    def _prepare_denoiser(self, module: Any) -> Any:
        backend = self._options.attention_backend
        if backend is not None:
            try:
                module.set_attention_backend(backend)
            except (ValueError, RuntimeError, ImportError, AttributeError) as error:
                raise LoadError(f"attention backend {backend!r} cannot be used: {error}") from error
        if self._options.compile:
            module.compile()
        return module

    def _set_stubs(self, names: Iterable[str]) -> None:
        for name in names:
            if self.files[name].is_module:
                setattr(self._pipeline, name, ComponentStub(name, self.configs[name], self._options.dtype))


def _has_source(spec: Any) -> bool:
    return spec.pretrained_model_name_or_path is not None


def _can_load(spec: Any) -> bool:
    return _has_source(spec) and spec.type_hint is not None

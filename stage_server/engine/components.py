"""Which components of a pipeline are resident: loads, unloads and puts stubs where weights are absent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ModularPipeline
from diffusers.configuration_utils import ConfigMixin

from stage_server.engine.base import LoadError
from stage_server.engine.checkpoint import Checkpoint, ComponentFiles
from stage_server.engine.stubs import ComponentStub
from stage_server.engine.weight_cache import WeightCache

DENOISERS = ("transformer", "unet")

ONE_REVISION = "download configuration and weights again, from one revision of the model"

_LONGEST_CAUSE = 600
"""Characters of what a library says; some list every weight."""

_MISSING_PACKAGE = re.compile(r"requires the (\S+) library")
"""As transformers words it, and diffusers quotes it."""


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
        files = self.files[name]
        cannot = f"{name} of {self._checkpoint.name} cannot be loaded"
        try:
            kept = self._cache.take(name)
            if kept is not None:
                return kept.to(self._options.device) if files.is_module else kept
            return self._read(name, files)
        except torch.OutOfMemoryError as error:
            raise LoadError(f"{name} does not fit into the memory of {self._options.device}") from error
        except LoadError as error:
            raise LoadError(f"{cannot}: {error}") from error
        except Exception as error:  # libraries raise what they like about a broken file, safetensors a bare Exception
            raise LoadError(f"{cannot}: {_cause(error, files)}") from error

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
        _refuse_gaps(report, type(module).__name__)
        spec.revision = files.revision
        module._diffusers_load_id = spec.load_id  # as ``ComponentSpec.load`` notes it
        module.to(self._options.device)
        return self._prepare_denoiser(module) if name in DENOISERS else module

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
            files = self.files[name]
            if files.is_module:
                setattr(
                    self._pipeline, name, ComponentStub(name, files.type_hint, self.configs[name], self._options.dtype)
                )


def _refuse_gaps(report: Mapping[str, Any], kind: str) -> None:
    """``report``: the library's own, which knows tied weights and those that a class may do without."""
    missing, mismatched = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    if mismatched:
        key, stored, expected = mismatched[0]
        raise LoadError(
            f"{len(mismatched)} weights do not fit config.json: {key} is {list(stored)} in the file, and "
            f"{list(expected)} in a {kind} of this configuration; {ONE_REVISION}"
        )
    if missing:
        raise LoadError(
            f"{len(missing)} weights of a {kind} of this configuration are not in its files, {missing[0]} for one; "
            f"{ONE_REVISION}"
        )


def _cause(error: Exception, files: ComponentFiles) -> str:
    try:
        files.verify()  # what was downloaded only now
    except LoadError as damage:
        return str(damage)
    package = _MISSING_PACKAGE.search(str(error))
    if package is not None:
        name = package[1].lower()
        return f"it needs the package {name}, which is not installed here; pip install {name}"
    said, *_advice = " ".join(str(error).split()).partition(
        " If you want to instead overwrite"
    )  # to load it regardless
    return f"{type(error).__name__}: {said[:_LONGEST_CAUSE].rstrip('.')}; {ONE_REVISION}"


def _has_source(spec: Any) -> bool:
    return spec.pretrained_model_name_or_path is not None


def _can_load(spec: Any) -> bool:
    return _has_source(spec) and spec.type_hint is not None

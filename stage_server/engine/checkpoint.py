"""Where a model's files are, and what can be learnt from them without loading weights.

A model is a bundled name, a folder or a hub id. Hub access (token, offline mode, cache) is huggingface_hub's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import msgspec
import torch
from diffusers import ModularPipeline
from diffusers.configuration_utils import ConfigMixin
from diffusers.modular_pipelines.modular_pipeline import MODULAR_PIPELINE_MAPPING
from diffusers.pipelines.auto_pipeline import _get_model
from huggingface_hub import HfApi, hf_hub_download, resolve_revision, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    RevisionResolutionError,
    SafetensorsParsingError,
)

from stage_server.engine.base import LoadError
from stage_server.engine.weights import DamagedFile, check_file, element_counts, loaded_bytes, read_json, unreadable
from stage_server.offload import Offload
from stage_server.offload import parsed as parsed_offloads
from stage_server.step_caches import StepCache, parse_levels
from stage_server.weight_formats import WeightFormat, parsed
from wire.bounded import Count, Positive
from wire.values import DTYPE_BYTES

BUNDLED = Path(__file__).parent.parent / "models"

_INDICES = ("modular_model_index.json", "model_index.json")
_WEIGHTS = ("diffusion_pytorch_model", "model")
_FINGERPRINT_BYTES = 1 << 16


class _ServingDefaults(msgspec.Struct):
    """What ``serving.json`` may say, all of it optional."""

    default_size: tuple[Positive, Positive] | None = None
    default_steps: Positive | None = None
    default_guidance: float | None = None
    max_pixels: Count = 0
    quality_steps: dict[Literal["low", "medium", "high", "xhigh", "max"], Positive] = {}
    quantize: dict[str, WeightFormat] = {}
    offload: dict[str, Offload] = {}
    step_caches: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's name and source; ``revision`` is a commit on the hub, None for a folder."""

    name: str
    source: str
    revision: str | None
    local_files_only: bool

    @classmethod
    def find(cls, model: str, revision: str | None, local_files_only: bool) -> Checkpoint:
        """Resolve a bundled name, a folder or a hub id. Raises ``LoadError``."""
        for folder in (BUNDLED / model, Path(model).expanduser()):
            if folder.is_dir():
                return cls(folder.resolve().name, str(folder), None, local_files_only)
        if model.count("/") != 1 or model.startswith((".", "/", "~")):
            raise LoadError(
                f"no model {model!r}: neither a bundled model ({_bundled()}), a folder, nor a hub id org/name"
            )
        try:
            commit = resolve_revision(model, revision=revision, local_files_only=local_files_only)
        except (HfHubHTTPError, RevisionResolutionError, HFValidationError, OSError) as error:
            raise LoadError(f"model {model!r} (revision {revision or 'main'}) not found on the hub: {error}") from error
        return cls(model, model, commit.resolved, local_files_only)

    def open_pipeline(self) -> ModularPipeline:
        """The modular pipeline with no component loaded. Code from the repository is never run."""
        self._check_indices()
        where = {"revision": self.revision, "local_files_only": self.local_files_only}
        try:
            classic = self._classic(where)
            if classic is not None and _get_model(classic[0]) not in MODULAR_PIPELINE_MAPPING:
                return modular_class(*classic)(pretrained_model_name_or_path=self.source, config_dict=classic[1])
            return ModularPipeline.from_pretrained(self.source, trust_remote_code=False, **where)
        except (OSError, ValueError, AttributeError, ImportError, TypeError) as error:
            raise LoadError(f"{self.name} has no modular pipeline that diffusers can build: {error}") from error

    def _classic(self, where: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
        """The class that ``model_index.json`` names, and the index, where there is no modular one."""
        modular, classic = ModularPipeline._load_pipeline_config(self.source, **where)
        if modular is not None or classic is None:
            return None
        return str(classic.get("_class_name", "")), classic

    def _check_indices(self) -> None:
        """diffusers says of an index that it cannot read that there is none."""
        found = [path for path in (Path(self.source) / name for name in _INDICES) if path.is_file()]
        for path in found:
            read_json(path)
        if Path(self.source).is_dir() and not found:
            raise LoadError(f"{self.source} is no model: it has neither {' nor '.join(_INDICES)}")

    def serving_defaults(self) -> dict[str, Any]:
        """``serving.json`` of a folder: the defaults and limits, as the operator wrote them."""
        path = Path(self.source) / "serving.json"
        if not path.is_file():
            return {}
        defaults = read_json(path)
        try:
            msgspec.convert(defaults, _ServingDefaults)
        except msgspec.ValidationError as error:
            raise LoadError(f"{path} is not as docs/models.md describes: {error}") from error
        return defaults

    def formats(self) -> dict[str, WeightFormat]:
        """Of weights, that ``serving.json`` asks for."""
        return parsed(self.serving_defaults().get("quantize", {}))

    def offloads(self) -> dict[str, Offload]:
        """Of components, that ``serving.json`` asks for."""
        return parsed_offloads(self.serving_defaults().get("offload", {}))

    def step_caches(self) -> dict[str, StepCache | None]:
        """By level, as ``serving.json`` has them. Raises ``LoadError``."""
        try:
            return parse_levels(self.serving_defaults().get("step_caches", {}))
        except ValueError as error:
            raise LoadError(f"step_caches in {Path(self.source) / 'serving.json'}: {error}") from error

    def component_files(self, spec: Any) -> ComponentFiles:
        """The files of one component, which a modular index may take from another repository."""
        repo = spec.pretrained_model_name_or_path
        revision = spec.revision or (self.revision if repo == self.source else None)
        return ComponentFiles(spec.type_hint, repo, spec.subfolder or "", revision, self.local_files_only)


@dataclass(frozen=True, slots=True)
class ComponentFiles:
    """Configuration and weights of one component on disk or on the hub."""

    type_hint: Any
    """The component's class."""
    repo: str
    subfolder: str
    revision: str | None
    local_files_only: bool

    @property
    def is_module(self) -> bool:
        return issubclass(self.type_hint, torch.nn.Module)

    def config(self) -> dict[str, Any]:
        """The component's configuration; empty for a tokenizer without one. Raises ``LoadError``."""
        if issubclass(self.type_hint, ConfigMixin):
            name = self.type_hint.config_name
        else:
            name = "config.json" if self.is_module else "tokenizer_config.json"
        path = self._fetch(name)
        if path is None and self.is_module:
            raise LoadError(f"{self.repo} has no {self._relative(name)}")
        return read_json(path) if path else {}

    def digest(self) -> str:
        """Identifies configuration and weights: by commit on the hub, by a sample of the files in a folder."""
        parts = hashlib.sha256(json.dumps(self.config(), sort_keys=True).encode())
        if self.revision:
            parts.update(self.revision.encode())
        for path in self._local_weights():
            parts.update(_fingerprint(path))
        return parts.hexdigest()[:16]

    def verify(self) -> None:
        """Raises ``LoadError`` unless the weights are whole, as far as they are on this machine already."""
        if not self.is_module:
            return
        is_local = Path(self.repo).is_dir()
        for stem in _WEIGHTS:
            paths = {name: self._fetch(name) for name in self._shards(stem)}
            absent = [name for name, path in paths.items() if path is None]
            index = self._fetch(f"{stem}.safetensors.index.json")
            if is_local and index and absent:
                raise DamagedFile(
                    index, f"names {absent[0]}, which is not there ({len(absent)} of {len(paths)} missing)"
                )
            for path in filter(None, paths.values()):
                check_file(path)
        if is_local:
            self._verify_others()

    def _verify_others(self) -> None:
        weights = list(self._local_weights())
        if not weights:
            folder = Path(self.repo) / self.subfolder
            raise LoadError(f"{folder} holds no weights: neither {' nor '.join(f'{s}.safetensors' for s in _WEIGHTS)}; "
                            "download them again")  # fmt: skip
        for path in weights:
            if path.suffix == ".bin":
                check_file(path)

    def weight_paths(self) -> tuple[Path, ...]:
        """Files of the weights that are on this machine; none unless all are."""
        for stem in _WEIGHTS:
            paths = [self._fetch(name) for name in self._shards(stem)]
            if all(paths):
                return tuple(filter(None, paths))
        return tuple(self._local_weights())

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of the weights once loaded as ``dtype``; 0 when nothing tells."""
        for stem in _WEIGHTS:
            counts = [self._counts(name) for name in self._shards(stem)]
            if all(counts) and counts:
                return sum(loaded_bytes(shard, DTYPE_BYTES[dtype]) for shard in counts)
        return sum(path.stat().st_size for path in self._local_weights())

    def _shards(self, stem: str) -> list[str]:
        index = self._fetch(f"{stem}.safetensors.index.json")
        if index is None:
            return [f"{stem}.safetensors"]
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise DamagedFile(index, "has no weight_map from tensors to files")
        return sorted(set(shards.values()))

    def _counts(self, filename: str) -> dict[str, int]:
        """Elements per dtype of one weight file, read without downloading it; empty when there is none to read."""
        path = self._fetch(filename)
        if path:
            return element_counts(path)
        if Path(self.repo).is_dir() or self.local_files_only:
            return {}
        try:
            found = HfApi().parse_safetensors_file_metadata(self.repo, self._relative(filename), revision=self.revision)
        except (HfHubHTTPError, SafetensorsParsingError, OSError):
            return {}
        return {str(stored): count for stored, count in found.parameter_count.items()}

    def _relative(self, filename: str) -> str:
        return f"{self.subfolder}/{filename}" if self.subfolder else filename

    def _fetch(self, filename: str) -> Path | None:
        relative = self._relative(filename)
        if Path(self.repo).is_dir():
            path = Path(self.repo) / relative
            try:
                return path if path.is_file() else None
            except OSError as error:  # the folder may not be entered
                raise unreadable(path, error) from error
        return _from_hub(self.repo, relative, self.revision, self.local_files_only)

    def _local_weights(self) -> Iterator[Path]:
        folder = Path(self.repo) / self.subfolder
        if folder.is_dir() and self.is_module:
            yield from sorted(path for path in folder.iterdir() if path.suffix in {".safetensors", ".bin"})


def _from_hub(repo: str, filename: str, revision: str | None, local_files_only: bool) -> Path | None:
    """A file's path in the hub cache, downloaded when small; weights are never downloaded just to look at them."""
    if filename.endswith(".safetensors"):
        cached = try_to_load_from_cache(repo, filename, revision=revision)
        return Path(cached) if isinstance(cached, str) else None
    try:
        return Path(hf_hub_download(repo, filename, revision=revision, local_files_only=local_files_only))
    except EntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise LoadError(f"cannot read {filename} of {repo}: {error}") from error


def modular_class(classic: str, index: Mapping[str, Any]) -> type[ModularPipeline]:
    """The modular pipeline for repositories of a pipeline of the old kind. Raises ``LoadError`` where there is none.

    diffusers knows it of most; of some it only has a class of the same name.
    """
    model = _get_model(classic)
    name = MODULAR_PIPELINE_MAPPING[model](index) if model in MODULAR_PIPELINE_MAPPING else ""
    alone = classic.removesuffix("Pipeline").removesuffix("ImageToVideo")  # for a task of it, where there are several
    found = getattr(diffusers, name or f"{alone}ModularPipeline", None)
    if isinstance(found, type) and issubclass(found, ModularPipeline):
        return found
    raise LoadError(
        f"model_index.json names {classic or 'no class'}, for which diffusers {diffusers.__version__} has no modular "
        f"pipeline, and only these can be split into stages; repositories of these can be served: {_modular_names()}"
    )


def _modular_names() -> str:
    names = (name.removesuffix("ModularPipeline") for name in dir(diffusers) if name.endswith("ModularPipeline"))
    return ", ".join(sorted(name for name in names if name))


def _bundled() -> str:
    return ", ".join(sorted(path.name for path in BUNDLED.iterdir() if path.is_dir()))


def _fingerprint(path: Path) -> bytes:
    """Size, start (the tensors' names and shapes) and end: tells retrained weights apart without reading them all."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_FINGERPRINT_BYTES)
        file.seek(max(0, size - _FINGERPRINT_BYTES))
        return size.to_bytes(8, "little") + start + file.read()

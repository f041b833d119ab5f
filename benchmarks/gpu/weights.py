"""A model without files of weights: a folder of configurations, and components made from them on the device."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch
import transformers
from diffusers.configuration_utils import ConfigMixin

from benchmarks.gpu.models import Model
from stage_server.engine.checkpoint import BUNDLED

STANDARD_DEVIATION = 0.02


def write_folder(model: Model, folder: Path) -> Path:
    """What the engine reads of a model before it loads one: index, configurations, tokenizers, headers of weights."""
    index: dict[str, Any] = {"_class_name": model.pipeline, "_diffusers_version": diffusers.__version__}
    for name, (class_name, config) in model.components.items():
        library, kind = _class(class_name)
        index[name] = [library, class_name]
        _write_component(kind, dict(config), folder / name)
    for name, tokenizer_kind in model.tokenizers.items():
        tokenizer = _tokenizer(tokenizer_kind)
        tokenizer.save_pretrained(folder / name)
        index[name] = ["transformers", type(tokenizer).__name__]
    if model.pipeline == "FluxPipeline":
        index |= {"image_encoder": [None, None], "feature_extractor": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    serving = {"default_size": [1024, 1024], "default_steps": model.steps, "default_guidance": model.guidance}
    (folder / "serving.json").write_text(json.dumps(serving))
    return folder


@contextmanager
def random_weights(device: str) -> Iterator[None]:
    """Modules are made on ``device`` with random weights, where they would be read from files."""

    def make(cls: Any, repo: str | Path, *, dtype: torch.dtype, subfolder: str | None = None, **_: Any) -> Any:
        folder = Path(repo) / (subfolder or "")
        with torch.device(device):
            module = _build(cls, folder).to(dtype).eval().requires_grad_(False)
        for parameter in module.parameters():
            if parameter.ndim > 1:  # those with one axis, norms and biases, are made as they start out in training
                torch.nn.init.normal_(parameter, std=STANDARD_DEVIATION)
        if device != "cpu":  # all was float32 at first, which is no need of the model's
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        return module, {"missing_keys": (), "mismatched_keys": ()}

    with (
        mock.patch.object(diffusers.ModelMixin, "from_pretrained", classmethod(make)),
        mock.patch.object(transformers.PreTrainedModel, "from_pretrained", classmethod(make)),
    ):
        yield


def _class(name: str) -> tuple[str, Any]:
    library = diffusers if hasattr(diffusers, name) else transformers
    return library.__name__, getattr(library, name)


def _write_component(kind: Any, config: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True)
    if not issubclass(kind, ConfigMixin):
        kind.config_class(**config).save_pretrained(folder)
    else:
        (folder / kind.config_name).write_text(json.dumps({"_class_name": kind.__name__, **config}))
    if issubclass(kind, torch.nn.Module):
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in _build(kind, folder).parameters())
        _write_header(folder / ("diffusion_pytorch_model" if issubclass(kind, ConfigMixin) else "model"), count)


def _write_header(stem: Path, elements: int) -> None:
    """A file of so many weights, of which the engine learns their size; a hole stands for what nobody reads."""
    header = json.dumps({"all": {"dtype": "BF16", "shape": [elements], "data_offsets": [0, 2 * elements]}}).encode()
    with stem.with_suffix(".safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * elements)


def _build(kind: Any, folder: Path) -> torch.nn.Module:
    if issubclass(kind, ConfigMixin):
        module: torch.nn.Module = kind.from_config(kind.load_config(folder))
        return module
    built: torch.nn.Module = kind(kind.config_class.from_pretrained(folder))
    return built


def _tokenizer(kind: str) -> Any:
    """With a few hundred pieces or less; what they are is all one to random weights, how many a prompt has is not."""
    match kind:
        case "qwen":
            return transformers.AutoTokenizer.from_pretrained(BUNDLED / "tiny-shapes" / "tokenizer")
        case "clip":
            letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
            pieces = [*letters, "<|startoftext|>", "<|endoftext|>"]
            vocabulary = {piece: number for number, piece in enumerate(pieces)}
            return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
        case _:
            special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
            letters_alone = [(letter, -3.0) for letter in string.ascii_lowercase]
            return transformers.T5Tokenizer(vocab=[*special, *letters_alone], extra_ids=0, model_max_length=512)

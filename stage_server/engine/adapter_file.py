"""Reads a LoRA file and holds it against the model: what does not fit is refused, and nothing is left out silently.

The formats are diffusers' business: each family's loader turns what trainers write into keys of the form
``transformer.blocks.0.attn.to_q.lora_A.weight``. What it leaves is taken apart here.
"""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)

from stage_server.engine.base import LoadError
from stage_server.engine.components import Components
from stage_server.engine.low_rank import LowRank, Patch, is_adaptable
from stage_server.engine.split import DENOISERS
from stage_server.engine.stubs import meta_instance
from stage_server.engine.weights import DamagedFile, read_header, read_json

_PAIR = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[AB])\.(?P<what>weight|bias)")
_OTHER_KINDS = {"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT"}
_PEFT_PREFIX = "base_model.model."

_ANY_ERROR = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, AssertionError, OSError)

State = dict[str, torch.Tensor]


class BadAdapter(Exception):
    """The file cannot be used; the text says why, names no path and goes on from "it" or "the adapter"."""


class AdapterReader:
    """Of one model: knows its family's loader, and the layers that its configurations describe."""

    def __init__(self, family: Any, components: Components) -> None:
        """``family``: the modular pipeline's class."""
        self._family = family
        self._files = components.files
        self._configs = components.configs
        self._layers: dict[str, Mapping[str, torch.nn.Module]] = {}

    @cached_property
    def adaptable(self) -> tuple[str, ...]:
        """Components that the family's loader knows how to adapt and the model has, the denoiser first."""
        names = getattr(self._family, "_lora_loadable_modules", None) or ()
        found = [name for name in names if name in self._files and self._files[name].is_module]
        return tuple(sorted(found, key=lambda name: (name not in DENOISERS, name)))

    def read(self, path: Path) -> dict[str, Patch]:
        """Component → its part, in host memory, as stored. Raises ``BadAdapter``."""
        if not self.adaptable:
            raise BadAdapter("is for a family for which diffusers has no LoRA loader")
        _refuse_other_kinds(_header(path))
        state, alphas, metadata = self._convert(path)
        patches: dict[str, Patch] = {}
        for component, part in self._by_component(state).items():
            own = _own(alphas, component), _own(metadata, component)
            patches[component] = self._patch(component, _in_peft_form(component, part), *own)
        if not patches:
            raise BadAdapter("holds no weights that concern the model")
        return patches

    def _convert(self, path: Path) -> tuple[State, Mapping[str, Any], Mapping[str, Any]]:
        """By the family's loader: weights, alphas that they came with, and what the file says of itself."""
        options: dict[str, Any] = {"return_lora_metadata": True, "use_safetensors": True, "local_files_only": True}
        if "return_alphas" in inspect.signature(self._family.lora_state_dict).parameters:
            options["return_alphas"] = True
        if "unet" in self.adaptable:
            options["unet_config"] = FrozenDict(self._configs["unet"])
        try:
            with _quiet():
                found = self._family.lora_state_dict(str(path.parent), weight_name=path.name, **options)
        except _ANY_ERROR as error:
            raise BadAdapter(f"is in no format that diffusers reads for this family ({_short(error)})") from error
        state, *alphas, metadata = found
        if path.name == "adapter_model.safetensors" and metadata is None:
            metadata = _peft_configuration(path.parent / "adapter_config.json")
        return state, (alphas[0] if alphas else None) or {}, metadata or {}

    def _by_component(self, state: State) -> dict[str, State]:
        """Raises ``BadAdapter`` for parts of components that the model has not, or that nobody adapts."""
        parts: dict[str, State] = {}
        if not any(key.split(".")[0] in self.adaptable for key in state):
            return {self.adaptable[0]: {key.removeprefix(_PEFT_PREFIX): value for key, value in state.items()}}
        for key, value in state.items():
            component, _, rest = key.partition(".")
            if component not in self.adaptable:
                able = " and ".join(self.adaptable)
                raise BadAdapter(f"has weights for '{_shown(key)}', which cannot be adapted; {able} of this model can")
            parts.setdefault(component, {})[rest] = value
        return parts

    def _patch(
        self, component: str, state: State, alphas: Mapping[str, Any], metadata: Mapping[str, Any]
    ) -> dict[str, LowRank]:
        layers = self._known_layers(component)

        def named(layer: str) -> str:
            """transformers has flattened CLIP; files are older."""
            return layer if layer in layers else layer.removeprefix("text_model.")

        scalars = {key.removesuffix(".alpha"): value for key, value in state.items() if key.endswith(".alpha")}
        scalars = {named(layer): value for layer, value in (scalars | _alphas_by_layer(component, alphas)).items()}
        halves: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in state.items():
            found = _PAIR.fullmatch(key)
            if found is not None and (found["half"], found["what"]) != ("A", "bias"):
                halves.setdefault(named(found["layer"]), {})[found["half"] + found["what"]] = value
            elif not key.endswith(".alpha"):
                raise BadAdapter(f"has weights that are no part of a LoRA, '{_shown(key)}' for one")
        if strange := [layer for layer in halves if layer not in layers]:
            raise BadAdapter(
                f"is for another model: {len(strange)} of its {len(halves)} layers are none of this model's "
                f"{component}, '{_shown(strange[0])}' for one"
            )
        return {
            layer: _low_rank(layer, layers[layer], found, _scale_of(layer, found, scalars, metadata))
            for layer, found in halves.items()
        }

    def _known_layers(self, component: str) -> Mapping[str, torch.nn.Module]:
        if component not in self._layers:
            skeleton = meta_instance(self._files[component].type_hint, self._configs[component])
            if skeleton is None:
                raise BadAdapter(
                    f"cannot be held against the {component}, which its configuration alone does not build"
                )
            named = {name: layer for name, layer in skeleton.named_modules() if is_adaptable(layer)}
            self._layers[component] = named
        return self._layers[component]


def _in_peft_form(component: str, state: State) -> State:
    """As diffusers' own loaders do it after ``lora_state_dict``."""
    if all("lora_A" in key or "lora_B" in key or key.endswith(".alpha") for key in state):
        converted = state
    else:
        try:
            if component in DENOISERS:
                converted = convert_unet_state_dict_to_peft(state)
            else:
                converted = convert_state_dict_to_peft(convert_state_dict_to_diffusers(state))
        except _ANY_ERROR as error:
            raise BadAdapter(f"has a part for the {component} in no format that diffusers reads") from error
    return converted


def _alphas_by_layer(component: str, alphas: Mapping[str, Any]) -> dict[str, Any]:
    """Loaders name an alpha after its layer, or after the matrix as it was called before the last conversion."""
    matrices = {key.removesuffix(".alpha"): value for key, value in alphas.items() if key.endswith("down.weight.alpha")}
    by_layer = {key.removesuffix(".alpha"): value for key, value in alphas.items() if not key.endswith("weight.alpha")}
    if matrices:
        converted = _in_peft_form(component, matrices)
        by_layer |= {key.partition(".lora_A.")[0]: value for key, value in converted.items()}
    return by_layer


def _scale_of(
    layer: str, halves: Mapping[str, torch.Tensor], alphas: Mapping[str, Any], metadata: Mapping[str, Any]
) -> float:
    """``alpha / rank``; 1 where neither weights nor metadata tell an alpha, as everybody has it."""
    rank = max(1, halves["Bweight"].shape[1]) if "Bweight" in halves and halves["Bweight"].ndim > 1 else 1
    alpha = alphas.get(layer)
    if alpha is None:
        patterns: Mapping[str, Any] = metadata.get("alpha_pattern") or {}
        of_layer = (value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key.lstrip('^')})", layer))
        alpha = next(of_layer, metadata.get("lora_alpha"))
    if alpha is None:
        return 1.0
    scale = float(alpha) / (math.sqrt(rank) if metadata.get("use_rslora") else rank)
    if not math.isfinite(scale):
        raise BadAdapter(f"is damaged: the alpha of '{_shown(layer)}' is no finite number")
    return scale


def _low_rank(layer: str, module: Any, halves: Mapping[str, torch.Tensor], scale: float) -> LowRank:
    """Raises ``BadAdapter`` unless the matrices fit ``module`` and are finite."""
    down, up, bias = halves.get("Aweight"), halves.get("Bweight"), halves.get("Bbias")
    if down is None or up is None:
        raise BadAdapter(f"is incomplete: of the two matrices of '{_shown(layer)}' one is missing")
    if isinstance(module, torch.nn.Conv2d):
        down, up = (half[:, :, None, None] if half.ndim == 2 else half for half in (down, up))
        fits = tuple(down.shape[1:]) == (module.in_channels, *module.kernel_size)
        fits = fits and tuple(up.shape) == (module.out_channels, down.shape[0], 1, 1)
    else:
        down, up = (half[:, :, 0, 0] if half.shape[2:] == (1, 1) else half for half in (down, up))
        fits = tuple(down.shape[1:]) == (module.in_features,)
        fits = fits and tuple(up.shape) == (module.out_features, down.shape[0])
    if not fits or (bias is not None and bias.shape != up.shape[:1]):
        raise BadAdapter(
            f"does not fit the model: the matrices of '{_shown(layer)}' are {_by(down)} and {_by(up)}, and the layer "
            f"is {_by(module.weight)}"
        )
    if not all(bool(half.isfinite().all()) for half in (down, up, bias) if half is not None):
        raise BadAdapter(f"is damaged: '{_shown(layer)}' holds NaN or infinity")
    return LowRank(down, up, bias, scale)


def _own(entries: Mapping[str, Any], component: str) -> dict[str, Any]:
    """Those of ``component``; entries that name none are the only component's."""
    prefix = f"{component}."
    own = {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}
    return own or {key: value for key, value in entries.items() if "." not in key}


def _header(path: Path) -> Mapping[str, Any]:
    try:
        return read_header(path)
    except DamagedFile as error:
        raise BadAdapter(f"is damaged: its file {error.wrong}") from error
    except LoadError as error:
        raise BadAdapter("cannot be read: its file is not there, or may not be opened") from error


def _refuse_other_kinds(header: Mapping[str, Any]) -> None:
    for key in header:
        for mark, kind in _OTHER_KINDS.items():
            if mark in key:
                raise BadAdapter(f"is no plain LoRA but {kind} ('{_shown(key)}'), which is not applied here")


def _peft_configuration(path: Path) -> dict[str, Any]:
    """peft writes alpha beside the weights, not among them. Raises ``BadAdapter``."""
    try:
        found = read_json(path)
    except LoadError as error:
        raise BadAdapter("has no readable adapter_config.json beside it, which tells its alpha") from error
    if found.get("use_dora"):
        raise BadAdapter("is no plain LoRA but DoRA, which is not applied here")
    return {name: found[name] for name in ("lora_alpha", "alpha_pattern", "use_rslora") if found.get(name) is not None}


@contextmanager
def _quiet() -> Iterator[None]:
    """The loaders warn of what is refused here in better words."""
    logger = logging.getLogger("diffusers.loaders")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _short(error: Exception) -> str:
    """Some list every key."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _shown(key: str) -> str:
    """Of a file that anybody may have written."""
    return "".join(letter for letter in key[:120] if letter.isprintable())


def _by(tensor: torch.Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "a scalar"

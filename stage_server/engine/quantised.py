"""Weights in fewer bits: which layers of a component change, how, and how many bytes that leaves.

Layers are quantised one by one once the component is in host memory, on the device that will compute with them, so that
diffusers' and transformers' components are treated alike and what it comes to is known beforehand.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from diffusers.hooks.layerwise_casting import apply_layerwise_casting_hook
from torch.nn import Conv1d, Conv2d, Conv3d, Linear

from stage_server.engine.base import LoadError
from stage_server.engine.leaves import is_composed, put, rebuilt
from stage_server.weight_formats import NEEDS, Formats, WeightFormat

GROUP = 64
"""Weights of a row that share a scale in four bits."""

_HIDE_DTYPE = (WeightFormat.NF4, WeightFormat.FLOAT8_STORAGE)
"""Their layers' weights say another dtype than the one that is computed in."""

_INT4_INPUTS, _INT4_OUTPUTS = 1024, 8
"""The kernel's tiles: rows and columns are padded to multiples."""

_NF4_TABLES = 16 * 4 + 256 * 4 + 4
"""Bytes of a layer: the sixteen values, those that scales may have, and the mean of the scales."""
_NF4_SCALES = 256
"""Scales that share one of a second order."""


def named(
    formats: Formats, configs: Mapping[str, Mapping[str, Any]], modules: Iterable[str]
) -> dict[str, WeightFormat]:
    """Those that change something. ``modules``: components with weights.

    Raises ``LoadError`` for what no server can have.
    """
    able = sorted(modules)
    found = dict(formats)
    for component in [each for each, form in formats.items() if form is WeightFormat.NONE and each in able]:
        del found[component]
    for component, form in found.items():
        asked = f"--quantize {component}={form}"
        if component not in able:
            raise LoadError(f"{asked}: the model has no component {component!r} with weights; it has {', '.join(able)}")
        if configs[component].get("quantization_config"):
            raise LoadError(f"{asked}: the files of {component} are quantised already, as its config.json says")
    return found


def check_possible(formats: Formats, device: torch.device, dtype: str) -> None:
    """Raises ``LoadError`` for what this device, dtype or installation cannot have."""
    for component, form in formats.items():
        asked, needs = f"--quantize {component}={form}", NEEDS[form]
        if needs.cuda is not None and device.type != "cuda":
            raise LoadError(
                f"{asked}: {form} needs a CUDA device, and this is {device.type}; {_possible(device, dtype)}"
            )
        if needs.cuda is not None and torch.cuda.get_device_capability(device) < needs.cuda:
            least = ".".join(map(str, needs.cuda))
            raise LoadError(
                f"{asked}: {form} needs compute capability {least}, which {torch.cuda.get_device_name(device)} has not"
            )
        if needs.dtype and dtype != needs.dtype:
            raise LoadError(f"{asked}: {form} computes in {needs.dtype} alone, and --dtype is {dtype}")
        _package(form, asked)


def versions(formats: Formats) -> list[str]:
    """Packages that compute with them: their results are equal only among equal versions."""
    packages = sorted({NEEDS[form].package for form in formats.values()} - {""})
    return [f"{package} {version(package)}" for package in packages]


def quantise(module: torch.nn.Module, form: WeightFormat, device: torch.device, dtype: torch.dtype) -> None:
    """The layers of ``module``, which is in host memory and stays there. Raises ``LoadError`` where none is fit."""
    chosen = list(fit_layers(module, form, dtype))
    if not chosen:
        raise LoadError(f"none of its layers is fit for the format {form}, which changes {_kinds(form)}")
    if form is WeightFormat.FLOAT8_STORAGE:
        for _, layer in chosen:
            _cast_around_calls(layer, dtype)
    elif form is WeightFormat.NF4:
        _quantise_nf4(module, chosen, device, dtype)
    else:
        _quantise_by_torchao(chosen, form, device)


def sizes(module: torch.nn.Module, form: WeightFormat, dtype: torch.dtype) -> Callable[[torch.Tensor], int]:
    """Tensor → the bytes that it will take, of a component that is not loaded and has no memory."""
    changed = {}
    for _, layer in fit_layers(module, form, dtype) if form is not WeightFormat.NONE else ():
        changed[id(layer.weight)] = _nbytes(layer.weight, form)
        if form is WeightFormat.FLOAT8_STORAGE and layer.bias is not None:
            changed[id(layer.bias)] = layer.bias.numel()

    def of(tensor: torch.Tensor) -> int:
        known = changed.get(id(tensor))
        return _plain_bytes(tensor, dtype) if known is None else known

    return of


def fit_layers(module: torch.nn.Module, form: WeightFormat, dtype: torch.dtype) -> Iterator[tuple[str, Any]]:
    """Name and layer: linear ones, for ``float8-storage`` convolutions too, but what their makers keep exact.

    Not those with weights that others have too (an output layer tied to the embeddings): they would be there twice.
    """
    kinds = (Linear, Conv1d, Conv2d, Conv3d) if form is WeightFormat.FLOAT8_STORAGE else (Linear,)
    kept = re.compile("|".join(_kept_patterns(module, form, dtype)))
    uses = Counter(
        id(parameter) for layer in module.modules() for parameter in layer._parameters.values() if parameter is not None
    )
    for name, layer in module.named_modules():
        if type(layer) in kinds and not kept.search(name) and uses[id(layer.weight)] == 1:
            if form in (WeightFormat.INT4, WeightFormat.NF4) and layer.weight.shape[1] % GROUP:
                continue
            yield name, layer


def _kept_patterns(module: torch.nn.Module, form: WeightFormat, dtype: torch.dtype) -> Iterator[str]:
    """Of layers that stay as they are, as with diffusers: its casting knows exceptions, and some must stay in float32.

    The latter overflow in float16 (T5's ``wo``), and are asked for their dtype, which some formats hide.
    """
    yield "^lm_head$"
    for owner in module.modules():
        if form is WeightFormat.FLOAT8_STORAGE:
            yield from getattr(owner, "_skip_layerwise_casting_patterns", None) or ()
        if form in _HIDE_DTYPE or dtype is torch.float16:
            exact = getattr(owner, "_keep_in_fp32_modules", None) or ()
            yield from (rf"(^|\.){re.escape(part)}(\.|$)" for part in ([exact] if isinstance(exact, str) else exact))


def _nbytes(weight: torch.Tensor, form: WeightFormat) -> int:
    """Of one layer's weight in that format, with its scales."""
    count = weight.numel()
    if form is WeightFormat.FLOAT8_STORAGE:
        return count
    rows, columns = weight.shape
    match form:
        case WeightFormat.INT8 | WeightFormat.INT8_DYNAMIC:
            return count + rows * (4 + 1)  # a scale in float32 and a zero point
        case WeightFormat.FLOAT8 | WeightFormat.FLOAT8_DYNAMIC:
            return count + rows * 4
        case WeightFormat.INT4:
            rows, columns = _up(rows, _INT4_OUTPUTS), _up(columns, _INT4_INPUTS)
            return rows * columns // 2 + rows * (columns // GROUP) * 2 * 2  # scale and zero point in bfloat16
        case WeightFormat.NF4:
            scales = -(-count // GROUP)
            return count // 2 + scales + -(-scales // _NF4_SCALES) * 4 + _NF4_TABLES
    raise ValueError(form)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _plain_bytes(tensor: torch.Tensor, dtype: torch.dtype) -> int:
    return tensor.numel() * (dtype if tensor.is_floating_point() else tensor.dtype).itemsize


def _quantise_by_torchao(layers: Iterable[tuple[str, Any]], form: WeightFormat, device: torch.device) -> None:
    library: Any = _package(form)
    config = _torchao_configs(library)[form]()
    for _, layer in layers:
        layer.to(device)
        library.quantize_(layer, config, filter_fn=lambda *_: True)
        if not is_composed(layer.weight):
            raise LoadError(f"torchao left a layer of {tuple(layer.weight.shape)} as it was")
        weight = rebuilt(layer.weight, torch.Tensor.cpu)
        layer.to("cpu")  # the bias
        put(layer, "weight", weight)


def _torchao_configs(library: Any) -> Mapping[WeightFormat, Callable[[], Any]]:
    return {
        WeightFormat.INT8: library.Int8WeightOnlyConfig,
        WeightFormat.INT8_DYNAMIC: library.Int8DynamicActivationInt8WeightConfig,
        WeightFormat.INT4: lambda: library.Int4WeightOnlyConfig(
            group_size=GROUP, int4_packing_format="tile_packed_to_4d"
        ),
        WeightFormat.FLOAT8: library.Float8WeightOnlyConfig,
        WeightFormat.FLOAT8_DYNAMIC: lambda: library.Float8DynamicActivationFloat8WeightConfig(
            granularity=library.PerRow()
        ),
    }


def _quantise_nf4(
    module: torch.nn.Module, layers: Iterable[tuple[str, Any]], device: torch.device, dtype: torch.dtype
) -> None:
    library: Any = _package(WeightFormat.NF4)
    for name, layer in layers:
        with torch.device("meta"):
            new = library.Linear4bit(
                layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=dtype, quant_type="nf4"
            )
        weight = library.Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4", blocksize=GROUP, module=new
        )
        new.weight = rebuilt(weight.to(device), torch.Tensor.cpu)
        new.quant_state = new.weight.quant_state
        new.bias = layer.bias
        module.set_submodule(name, new.train(layer.training))


def _cast_around_calls(layer: torch.nn.Module, dtype: torch.dtype) -> None:
    apply_layerwise_casting_hook(layer, torch.float8_e4m3fn, dtype, non_blocking=False)


def _package(form: WeightFormat, asked: str = "") -> Any:
    """The module that has what a format needs. Raises ``LoadError``."""
    package = NEEDS[form].package
    if not package:
        return None
    try:
        version(package)
        with _quiet(package):
            return import_module({"torchao": "torchao.quantization", "bitsandbytes": "bitsandbytes.nn"}[package])
    except (PackageNotFoundError, ImportError) as error:
        raise LoadError(
            f"{asked or form}: it needs the package {package}, which is not usable here ({error}); "
            "pip install -c constraints.txt '.[quantize]'"
        ) from error


@contextmanager
def _quiet(package: str) -> Iterator[None]:
    """It complains of kernels for devices that are not here."""
    log = logging.getLogger(package)
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _possible(device: torch.device, dtype: str) -> str:
    able = [form for form, needs in NEEDS.items() if needs.cuda is None or device.type == "cuda"]
    return f"possible here with {dtype}: {', '.join(able)}"


def _kinds(form: WeightFormat) -> str:
    if form is WeightFormat.FLOAT8_STORAGE:
        return "linear layers and convolutions"
    rows = f" whose rows are multiples of {GROUP}" if form in (WeightFormat.INT4, WeightFormat.NF4) else ""
    return f"linear layers{rows}"

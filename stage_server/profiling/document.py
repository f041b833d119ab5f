"""A profile as the text of a TOML file, in the schema of docs/profiles.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from stage_server.profiling.fit import Row, errors, fit
from stage_server.profiling.further import FurtherStage
from stage_server.profiling.measure import Measured, RoleTimes, Size
from stage_server.profiling.shapes import Shapes, TensorShape
from wire.params import ModelInfo
from wire.to_gateway import RoleInfo
from wire.types import REQUIRED, Role

GIGABYTE = 10**9
ONE_AT_A_TIME = {0: 1.0}
"""As jobs of optional stages are."""
KEYS: Mapping[Role, tuple[str, ...]] = {
    Role.ENCODER: ("fixed_seconds", "seconds_per_text_token", "seconds_per_image_pixel"),
    Role.DIT: ("fixed_seconds", "seconds_per_token", "seconds_per_token_squared"),
    Role.DECODER: ("fixed_seconds", "seconds_per_pixel"),
    Role.UPSCALER: ("fixed_seconds", "seconds_per_pixel"),
    Role.ENHANCER: ("fixed_seconds", "seconds_per_token"),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """What was measured, and where."""

    info: ModelInfo
    token_pixels: int
    device_class: str
    memory_bytes: int
    capable: Mapping[Role, RoleInfo]
    versions: str
    loaded_from: str
    """What the measured load times hold for."""


def render(subject: Subject, measured: Measured, shapes: Shapes, further: Sequence[FurtherStage] = ()) -> str:
    """The whole file."""
    rows = {role: _rows(role, subject, measured, shapes) for role in REQUIRED}
    rows |= {stage.role: (stage.rows, stage.seconds) for stage in further}
    fitted = {role: fit(*rows[role]) for role in rows}
    accuracy = {role: errors(*rows[role], fitted[role]) for role in rows}
    sections = [_head(subject, measured, accuracy), _model(subject, measured, shapes), _device(subject)]
    outputs = {Role.ENCODER: shapes.encoder, Role.DIT: shapes.dit, Role.DECODER: ()}
    for role in REQUIRED:
        weights, times = subject.capable[role].weight_bytes, measured.times[role]
        points = {_tokens(subject, size): marginal for size, marginal in times.batch_marginal.items()}
        sections.append(_role(role, fitted[role], times, weights, points) + "".join(_outputs(outputs[role])))
    for stage in further:
        section = _role(stage.role, fitted[stage.role], stage.times, stage.weight_bytes, ONE_AT_A_TIME)
        sections.append(section if stage.factor is None else f"{section}\nfactor = {stage.factor}")
    return "\n\n".join(sections) + "\n"


def _rows(role: Role, subject: Subject, measured: Measured, shapes: Shapes) -> tuple[list[Row], list[float]]:
    """Features of what was measured, in the order of ``KEYS``, and seconds."""
    seconds = measured.times[role].seconds
    match role:
        case Role.ENCODER:
            rows: list[Row] = [(1.0, float(shapes.text_tokens), 0.0) for _ in seconds]
            rows += [(1.0, float(shapes.short_tokens), 0.0)]
            rows += [(1.0, float(shapes.text_tokens), float(w * h)) for w, h in measured.image_seconds]
            return rows, [*seconds.values(), measured.short_seconds, *measured.image_seconds.values()]
        case Role.DIT:
            tokens = [float(_tokens(subject, size)) for size in seconds]
            return [(1.0, n, n * n) for n in tokens], [*seconds.values()]
        case _:  # the decoder
            return [(1.0, float(w * h)) for w, h in seconds], [*seconds.values()]


def _tokens(subject: Subject, size: Size) -> int:
    side = subject.token_pixels
    return -(-size[0] // side) * -(-size[1] // side)


def _head(subject: Subject, measured: Measured, accuracy: Mapping[Role, tuple[float, float]]) -> str:
    sizes = ", ".join(f"{w}x{h}" for w, h in measured.times[Role.DIT].seconds)
    off = "; ".join(f"{role} {mean:.1%} on average, {most:.1%} at most" for role, (mean, most) in accuracy.items())
    text = (
        f"Measured by python -m stage_server profile with {subject.versions}, sizes {sizes}. "
        f"The formulas miss the measured times by: {off}. Loading is from {subject.loaded_from}."
    )
    return f"schema = 1\nsource = {_quoted(text)}"


def _model(subject: Subject, measured: Measured, shapes: Shapes) -> str:
    info = subject.info
    return _table(
        "model",
        {
            "name": _quoted(info.name.rpartition("/")[2]),
            "default_steps": str(info.default_steps or 50),
            "default_guidance": _number(info.default_guidance or 1.0),
            "guidance_passes": str(measured.guidance_passes),
            "text_tokens": str(shapes.text_tokens),
            "pixels_per_token": str(subject.token_pixels),
            "latent_pixels": str(shapes.latent_pixels),
            "size_multiple": str(info.size_multiple),
        }
        | _references(info),
    )


def _references(info: ModelInfo) -> dict[str, str]:
    """Of edits by pictures, in one line; nothing where these are brought to the size of the answer."""
    rule = next((workflow.references for workflow in info.workflows if workflow.name == "image_conditioned"), None)
    told = {} if rule is None else msgspec.to_builtins(rule)
    fields = ", ".join(f"{name} = {json.dumps(value)}" for name, value in told.items())
    return {"references": f"{{ {fields} }}"} if fields else {}


def _device(subject: Subject) -> str:
    gigabytes = _number(subject.memory_bytes / GIGABYTE)
    quoted = {"class": _quoted(subject.device_class), "memory_gb": gigabytes, "precision": _quoted(subject.info.dtype)}
    return _table("device", quoted)


def _role(role: Role, fitted: Row, times: RoleTimes, weight_bytes: int, points: Mapping[int, float]) -> str:
    """``points``: image tokens → what one more job adds."""
    activation = max(0, times.peak_bytes - weight_bytes)
    values = {key: _number(value) for key, value in zip(KEYS[role], fitted, strict=True)} | {
        "weights_gb": _number(weight_bytes / GIGABYTE),
        "activation_gb": _number(activation / GIGABYTE)
        + ("" if times.peak_bytes else " # not measured on this device"),
        "load_seconds": _number(times.load_seconds),
        "batch_marginal": "[" + ", ".join(f"[{n}, {m:.2f}]" for n, m in sorted(points.items())) + "]",
    }
    return _table(role.value, values)


def _outputs(outputs: tuple[TensorShape, ...]) -> Iterator[str]:
    if not outputs:
        return
    yield "\noutputs = [\n"
    for tensor in outputs:
        shape = ", ".join(str(extent) if isinstance(extent, int) else _quoted(extent) for extent in tensor.shape)
        port, name, dtype = map(_quoted, (tensor.port, tensor.name, tensor.dtype))
        yield f"    {{ port = {port}, name = {name}, dtype = {dtype}, shape = [{shape}] }},\n"
    yield "]"


def _table(name: str, values: Mapping[str, str]) -> str:
    return "\n".join([f"[{name}]", *(f"{key} = {value}" for key, value in values.items())])


def _number(value: float) -> str:
    """Six digits; TOML wants a digit on both sides of a decimal point."""
    text = f"{value:.6g}"
    return text if "." in text or "e" in text else f"{text}.0"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

"""``python -m stage_server memory``: what each component takes in each format, predicted and, if wanted, measured."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stage_server.engine.base import LoadError
from stage_server.profiling.settings import MemorySettings, read_memory_settings
from stage_server.settings import InvalidSettings
from stage_server.startup import make_real_engine
from stage_server.weight_formats import NEEDS, WeightFormat

if TYPE_CHECKING:
    from stage_server.engine.diffusers_engine import DiffusersEngine

_COLUMNS = "{:24} {:15} {:>12} {:>12} {:>8}"


@dataclass(frozen=True, slots=True)
class Line:
    component: str
    form: WeightFormat
    predicted: int
    """Bytes."""
    loaded: int | None = None
    why_not: str = ""

    def __str__(self) -> str:
        measured = "" if self.loaded is None else f"{self.loaded / 1e6:.2f} MB"
        off = f"{self.off:+.2%}" if self.loaded else ""
        return _COLUMNS.format(self.component, self.form, f"{self.predicted / 1e6:.2f} MB", measured, off).rstrip() + (
            f"  {self.why_not}" if self.why_not else ""
        )

    @property
    def off(self) -> float:
        """Share by which the prediction misses."""
        return self.predicted / self.loaded - 1 if self.loaded else 0.0


def run(arguments: Sequence[str], program: str = "python -m stage_server") -> None:
    """Raises ``InvalidSettings`` or ``LoadError``, with texts for the operator."""
    settings = read_memory_settings(arguments, program)
    logging.basicConfig(level=settings.log_level.upper(), format="%(message)s", stream=sys.stderr)
    engine = make_real_engine(settings, {}, loads=False)
    sys.stdout.write(_COLUMNS.format("component", "format", "predicted", "loaded", "off").rstrip() + "\n")
    for line in lines(engine, settings):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    roles = {role.value: info.weight_bytes for role, info in engine.capable().items()}
    chosen = ", ".join(f"{name} in {form}" for name, form in engine.describe().formats.items()) or "no format"
    shown = ", ".join(f"{role} {nbytes / 1e9:.3f} GB" for role, nbytes in roles.items())
    sys.stdout.write(f"roles with {chosen}: {shown}\n")
    if settings.output is not None:
        _write(settings, engine, roles)


def lines(engine: DiffusersEngine, settings: MemorySettings) -> Iterator[Line]:
    """Of every component with weights in every format that changes something of it."""
    components = engine._components
    for name, files in components.files.items():
        if not files.is_module:
            continue
        plain = components.predicted_bytes(name, WeightFormat.NONE)
        for form in WeightFormat:
            if form is not WeightFormat.NONE and components.configs[name].get("quantization_config"):
                continue
            predicted = components.predicted_bytes(name, form)
            if form is not WeightFormat.NONE and predicted == plain:
                continue
            yield _measured(settings, name, form, predicted) if settings.measure else Line(name, form, predicted)


def _measured(settings: MemorySettings, name: str, form: WeightFormat, predicted: int) -> Line:
    """By an engine of its own, which is closed again."""
    try:
        engine = make_real_engine(settings.model_copy(update={"quantize": {name: form}, "weight_cache_bytes": 0}), {})
        component = engine._components.load(name, nullcontext)
    except LoadError as error:
        why = "needs another device or dtype" if NEEDS[form].cuda else str(error)
        return Line(name, form, predicted, why_not=why)
    loaded = engine._components.nbytes(name)
    engine._components.discard({name: component}, keep=False)
    engine.close()
    return Line(name, form, predicted, loaded)


def _write(settings: MemorySettings, engine: DiffusersEngine, roles: dict[str, int]) -> None:
    info = engine.describe()
    told = {"model": info.name, "dtype": info.dtype, "formats": info.formats, "weight_bytes": roles}
    assert settings.output is not None  # noqa: S101  # its caller has looked
    try:
        settings.output.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidSettings(f"--output: {settings.output} cannot be written: {error.strerror}") from error
    sys.stderr.write(f"{settings.output} is written; name it in 'disagfusion plan --memory'\n")

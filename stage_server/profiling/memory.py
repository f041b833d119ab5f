"""``python -m stage_server memory``: what each component takes of the device in each format and offloaded, predicted
and, if wanted, measured."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from stage_server.command_line import InvalidSettings
from stage_server.engine.base import HOST_BANDWIDTH, EngineError, LoadError
from stage_server.offload import Offload
from stage_server.profiling.settings import MemorySettings, read_memory_settings
from stage_server.startup import make_real_engine
from stage_server.weight_formats import NEEDS, WeightFormat
from wire.types import REQUIRED, Role

if TYPE_CHECKING:
    from stage_server.engine.diffusers_engine import DiffusersEngine
    from stage_server.engine.further import FurtherEngine

_COLUMNS = "{:24} {:15} {:9} {:>12} {:>12} {:>8}"


@dataclass(frozen=True, slots=True)
class Line:
    component: str
    form: WeightFormat
    predicted: int
    """Bytes."""
    loaded: int | None = None
    why_not: str = ""
    level: Offload = Offload.NONE

    def __str__(self) -> str:
        measured = "" if self.loaded is None else f"{self.loaded / 1e6:.2f} MB"
        off = f"{self.off:+.2%}" if self.loaded else ""
        shown = self.component, self.form, self.level, f"{self.predicted / 1e6:.2f} MB", measured, off
        return _COLUMNS.format(*shown).rstrip() + (f"  {self.why_not}" if self.why_not else "")

    @property
    def off(self) -> float:
        """Share by which the prediction misses."""
        return self.predicted / self.loaded - 1 if self.loaded else 0.0


def run(arguments: Sequence[str], program: str = "python -m stage_server") -> None:
    """Raises ``InvalidSettings`` or ``LoadError``, with texts for the operator."""
    settings = read_memory_settings(arguments, program)
    logging.basicConfig(level=settings.log_level.upper(), format="%(message)s", stream=sys.stderr)
    engine = make_real_engine(settings, {}, loads=False)
    from stage_server.further_stages import stages_of, with_further_stages  # here, as torch comes with it

    whole = with_further_stages(engine, settings)
    sys.stdout.write(_COLUMNS.format("component", "format", "offloaded", "predicted", "loaded", "off").rstrip() + "\n")
    for line in chain(lines(engine, settings), further_lines(stages_of(whole), settings)):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    roles = {role: info.weight_bytes for role, info in whole.capable().items()}
    offloads = engine._components.offloads
    parts = [f"{name} in {form}" for name, form in engine.describe().formats.items()]
    parts += [f"{name} offloaded by {level}" for name, level in offloads.items()]
    shown = ", ".join(f"{role} {nbytes / 1e9:.3f} GB" for role, nbytes in roles.items())
    sys.stdout.write(f"roles with {', '.join(parts) or 'no format'}: {shown}\n")
    copies = copy_seconds(engine)
    for role, seconds in copies.items():
        sys.stdout.write(
            f"a call of the {role} takes {seconds:.3g} s or more: its weights come at {HOST_BANDWIDTH / 1e9:g} GB/s\n"
        )
    if settings.output is not None:
        _write(settings, engine, roles, copies)


def copy_seconds(engine: DiffusersEngine) -> dict[Role, float]:
    """Of what is offloaded: how long each call waits for its weights at least. Where nobody has measured it."""
    copied = {role: sum(map(engine._components.copied_bytes, engine._needed({role}))) for role in REQUIRED}
    return {role: nbytes / HOST_BANDWIDTH for role, nbytes in copied.items() if nbytes}


def lines(engine: DiffusersEngine, settings: MemorySettings) -> Iterator[Line]:
    """Of every component with weights: in every format that changes something of it, and offloaded in its own."""
    for name, files in engine._components.files.items():
        for form, level in _ways(engine, name) if files.is_module else ():
            predicted = engine._components.predicted_bytes(name, form, level).device
            if settings.measure:
                yield _measured(settings, name, form, level, predicted)
            else:
                yield Line(name, form, predicted, level=level)


def further_lines(stages: Iterable[FurtherEngine], settings: MemorySettings) -> Iterator[Line]:
    """Of the stages beside the model's own, whose weights have one form."""
    for stage in stages:
        predicted = Line(stage.role.value, WeightFormat.NONE, stage.model.nbytes)
        yield _with_loaded(predicted, stage) if settings.measure else predicted


def _with_loaded(line: Line, stage: FurtherEngine) -> Line:
    from stage_server.engine.translated import errors_translated  # here, as torch comes with it

    try:
        with errors_translated(stage.device):
            stage.model.load()
        return replace(line, loaded=stage.loaded_bytes)
    except (LoadError, EngineError) as error:
        return replace(line, why_not=str(error))
    finally:
        stage.model.unload()


def _ways(engine: DiffusersEngine, name: str) -> Iterator[tuple[WeightFormat, Offload]]:
    components = engine._components
    plain = components.predicted_bytes(name, WeightFormat.NONE, Offload.NONE).device
    yield WeightFormat.NONE, Offload.NONE
    if not components.configs[name].get("quantization_config"):
        for form in WeightFormat:
            if components.predicted_bytes(name, form, Offload.NONE).device != plain:
                yield form, Offload.NONE
    for level in (Offload.BLOCK, Offload.LEAF):
        form = components.formats.get(name, WeightFormat.NONE)
        try:
            components.predicted_bytes(name, form, level)
        except LoadError:  # it has nothing to come and go
            continue
        yield form, level


def _measured(settings: MemorySettings, name: str, form: WeightFormat, level: Offload, predicted: int) -> Line:
    """By an engine of its own, which is closed again."""
    chosen = {"quantize": {name: form}, "offload": {name: level}, "weight_cache_bytes": 0}
    try:
        engine = make_real_engine(settings.model_copy(update=chosen), {})
        component = engine._components.load(name, nullcontext)
    except LoadError as error:
        why = "needs another device or dtype" if NEEDS[form].cuda else str(error)
        return Line(name, form, predicted, why_not=why, level=level)
    loaded = engine._components.nbytes(name)
    engine._components.discard({name: component}, keep=False)
    engine.close()
    return Line(name, form, predicted, loaded, level=level)


def _write(
    settings: MemorySettings, engine: DiffusersEngine, roles: dict[Role, int], copies: dict[Role, float]
) -> None:
    info = engine.describe()
    told = {
        "model": info.name,
        "dtype": info.dtype,
        "formats": info.formats,
        "offload": engine._components.offloads,
        "weight_bytes": roles,
        "copy_seconds": copies,
    }
    assert settings.output is not None  # noqa: S101  # its caller has looked
    try:
        settings.output.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidSettings(f"--output: {settings.output} cannot be written: {error.strerror}") from error
    sys.stderr.write(f"{settings.output} is written; name it in 'disagfusion plan --memory'\n")

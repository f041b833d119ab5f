"""The subcommand itself: options in, a profile out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stage_server.command_line import InvalidSettings
from stage_server.engine.base import EngineError, LoadError
from stage_server.profiling.document import Subject, render
from stage_server.profiling.further import further_stages
from stage_server.profiling.measure import COLORS, Bench, Size
from stage_server.profiling.settings import ProfileSettings, read_profile_settings
from stage_server.profiling.shapes import read_shapes
from stage_server.startup import largest_side, make_real_engine
from wire.params import ModelInfo
from wire.types import Role

if TYPE_CHECKING:
    from stage_server.engine.diffusers_engine import DiffusersEngine

SMALLEST = 4
"""The smallest size by default, in the model's steps of width and height."""


def run(arguments: Sequence[str], program: str = "python -m stage_server") -> None:
    """Raises ``InvalidSettings`` or ``LoadError``, with texts for the operator."""
    settings = read_profile_settings(arguments, program)
    logging.basicConfig(level=settings.log_level.upper(), format="%(message)s", stream=sys.stderr)
    text = measure(settings)
    if settings.output is None:
        sys.stdout.write(text)
        return
    try:
        settings.output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidSettings(f"--output: {settings.output} cannot be written: {error.strerror}") from error
    sys.stderr.write(f"{settings.output} is written; name it in DISAGFUSION_PROFILES of the gateway\n")


def measure(settings: ProfileSettings) -> str:
    """The profile as TOML."""
    engine = make_real_engine(settings, dict.fromkeys(Role, len(COLORS)))
    info = engine.describe()
    sizes = settings.sizes or default_sizes(info)
    _check(sizes, info)
    try:
        measured = Bench(engine, sizes, settings.repeats).run()
        further = tuple(further_stages(engine, settings, measured.pictures, settings.repeats))
    except EngineError as error:
        raise LoadError(f"{info.name} cannot be timed: {error}") from error
    subject = describe(engine, info, "files that the system had in its cache")
    engine.close()
    return render(subject, measured, read_shapes(measured), further)


def describe(engine: DiffusersEngine, info: ModelInfo, loaded_from: str) -> Subject:
    return Subject(
        info,
        engine.token_pixels,
        engine.device_class,
        engine.memory_bytes,
        engine.capable(),
        library_versions(),
        loaded_from,
    )


def default_sizes(info: ModelInfo) -> tuple[Size, ...]:
    """Squares: the smallest that is worth it, the largest that is served, and some between."""
    smallest, largest, usual = SMALLEST * info.size_multiple, largest_side(info), max(info.default_size)
    sides = (smallest, usual // 2, usual, (usual + largest) // 2, largest)
    snapped = {max(smallest, side // info.size_multiple * info.size_multiple) for side in sides}
    return tuple((side, side) for side in sorted(snapped))


def _check(sizes: Sequence[Size], info: ModelInfo) -> None:
    for width, height in sizes:
        if width % info.size_multiple or height % info.size_multiple or not width or not height:
            raise InvalidSettings(f"--sizes: {width}x{height}: {info.name} takes multiples of {info.size_multiple}")
        if info.max_pixels and width * height > info.max_pixels:
            raise InvalidSettings(f"--sizes: {width}x{height}: {info.name} serves {info.max_pixels} pixels at most")


def library_versions() -> str:
    # Imported here: the options are read and explained without torch.
    import diffusers
    import torch

    return f"diffusers {diffusers.__version__}, torch {torch.__version__}, {torch.get_num_threads()} processor threads"

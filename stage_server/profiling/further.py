"""Times the stages beside a model's own: what makes its pictures larger, and what writes its prompts anew."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from stage_server.engine.base import IMAGE_PORT, PIXELS, Engine, EngineError, NamedValues, Outputs, StageJob
from stage_server.further_settings import FurtherSettings
from stage_server.profiling.fit import Row
from stage_server.profiling.measure import SHORT, USUAL, RoleTimes, Size, loaded, whole_runs
from wire.params import ImageParams
from wire.types import Role
from wire.values import Tensor

if TYPE_CHECKING:
    from stage_server.engine.diffusers_engine import DiffusersEngine

log = logging.getLogger(__name__)


@dataclass(slots=True)
class FurtherStage:
    """What was measured of one, as ``document.render`` takes it."""

    role: Role
    weight_bytes: int
    times: RoleTimes
    """Without seconds, which are those below."""
    rows: list[Row] = field(default_factory=list)
    """Features of each job, in the order of ``document.KEYS``."""
    seconds: list[float] = field(default_factory=list)
    factor: int | None = None
    """Of an upscaler."""


def further_stages(
    inner: DiffusersEngine, settings: FurtherSettings, made: Mapping[Size, Outputs], repeats: int
) -> Iterator[FurtherStage]:
    """Of those that ``settings`` name, one resident at a time. ``made``: the decoder's outputs.

    Raises ``LoadError``, and ``EngineError`` where not even the smallest job can be run.
    """
    if settings.upscaler:
        yield _upscaler(inner, settings, made, repeats)
    if settings.enhancer:
        yield _enhancer(inner, settings, repeats)


def _upscaler(
    inner: DiffusersEngine, settings: FurtherSettings, made: Mapping[Size, Outputs], repeats: int
) -> FurtherStage:
    """By the pictures that the model made; the largest that do not fit the device are left out."""
    engine = _only(inner, settings, Role.UPSCALER)
    stage = _begun(engine, Role.UPSCALER)
    upscaler = engine.describe().upscaler
    assert upscaler is not None  # noqa: S101  # it is what ``engine`` has
    stage.factor = upscaler.factor
    for (width, height), outputs in made.items():
        job = StageJob(Role.UPSCALER, ImageParams(width=width, height=height, upscale=upscaler.factor))
        try:
            _, seconds = whole_runs(engine, job, _pixels(outputs), repeats)
        except EngineError as error:
            if not stage.rows:
                raise
            log.warning("%s of %dx%d is left out: %s", stage.role, width, height, error)
            break
        _note(stage, engine, (1.0, float(width * height)), seconds)
        log.info("%s of %dx%d: %.4g s", stage.role, width, height, seconds)
    engine.set_roles(frozenset())
    return stage


def _enhancer(inner: DiffusersEngine, settings: FurtherSettings, repeats: int) -> FurtherStage:
    """Allowed half of its tokens and all of them, as most of the time goes into those that it writes."""
    most = settings.enhancer_tokens
    allowed = sorted({max(1, most // 2), most})
    engines = [_only(inner, settings, Role.ENHANCER, enhancer_tokens=tokens) for tokens in allowed]
    stage = _begun(engines[0], Role.ENHANCER)
    for engine in engines:
        engine.set_roles(frozenset({Role.ENHANCER}))
        enhancer = engine.describe().enhancer
        assert enhancer is not None  # noqa: S101  # it is what ``engine`` has
        for prompt in (SHORT, USUAL):
            _, seconds = whole_runs(engine, StageJob(Role.ENHANCER, ImageParams(prompt=prompt)), {}, repeats)
            _note(stage, engine, (1.0, float(enhancer.tokens(prompt))), seconds)
            log.info("%s of %d tokens: %.4g s", stage.role, enhancer.tokens(prompt), seconds)
        engine.set_roles(frozenset())
    return stage


def _only(inner: DiffusersEngine, settings: FurtherSettings, role: Role, **changed: object) -> Engine:
    """``inner`` with this stage and without others."""
    from stage_server.further_stages import with_further_stages  # here, as torch comes with it

    others = {name.value: "" for name in (Role.UPSCALER, Role.ENHANCER) if name is not role}
    return with_further_stages(inner, settings.model_copy(update=others | changed))


def _begun(engine: Engine, role: Role) -> FurtherStage:
    """It is loaded."""
    return FurtherStage(role, engine.capable()[role].weight_bytes, loaded(engine, role))


def _note(stage: FurtherStage, engine: Engine, row: Row, seconds: float) -> None:
    stage.rows.append(row)
    stage.seconds.append(seconds)
    stage.times.peak_bytes = max(stage.times.peak_bytes, engine.peak_bytes())


def _pixels(outputs: Outputs) -> NamedValues:
    """What a decoder leaves for an upscaler, of the file that it made."""
    data = outputs[IMAGE_PORT]["image"]
    assert isinstance(data, bytes)  # noqa: S101  # as ``IMAGE_PORT`` says
    shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return {PIXELS: Tensor("uint8", shown.shape, memoryview(shown.tobytes()))}

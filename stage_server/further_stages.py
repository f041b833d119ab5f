"""Puts the stages around a model's engine that its settings name. Imports torch: to be imported when it is needed."""

from __future__ import annotations

from collections.abc import Iterator

from stage_server.engine.base import Engine
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.enhancer import PromptEnhancer
from stage_server.engine.enhancing import EnhancingEngine
from stage_server.engine.further import FurtherEngine
from stage_server.engine.translated import torch_dtype
from stage_server.engine.upscaler import PictureUpscaler
from stage_server.engine.upscaling import UpscalingEngine
from stage_server.further_settings import FurtherSettings


def with_further_stages(engine: DiffusersEngine, settings: FurtherSettings) -> Engine:
    """Raises ``LoadError``."""
    made: DiffusersEngine | FurtherEngine = engine
    if settings.upscaler:
        made = UpscalingEngine(made, PictureUpscaler(settings.upscaler, engine.device))
    if settings.enhancer:
        enhancer = PromptEnhancer(
            settings.enhancer,
            engine.device,
            torch_dtype(engine.describe().dtype),
            instruction=settings.enhancer_instruction,
            max_tokens=settings.enhancer_tokens,
        )
        made = EnhancingEngine(made, enhancer)
    return made


def stages_of(engine: Engine) -> Iterator[FurtherEngine]:
    """Those that were put around a model's engine."""
    while isinstance(engine, FurtherEngine):
        yield engine
        engine = engine.inner

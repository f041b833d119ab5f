"""One job's view of a pipeline: shared weights, its own guider and scheduler, and stand-ins for what is heavy.

Guider and scheduler hold job state, and jobs of one engine interleave: a job that is parked between two steps must
find its own state when it goes on.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from diffusers import ModularPipeline, SchedulerMixin
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks, ModularPipelineBlocks

from stage_server.engine.base import LoadError
from stage_server.engine.guiders import made
from stage_server.engine.port import JobPort
from stage_server.engine.split import walk
from wire.guiders import GuiderUse


def quiet_diffusers() -> None:
    """Errors reach the caller as exceptions; diffusers would log them once more per nested block, with inputs."""
    logging.getLogger("diffusers.modular_pipelines.modular_pipeline").setLevel(logging.CRITICAL)
    logging.getLogger("diffusers.modular_pipelines").setLevel(logging.ERROR)  # warnings quote prompts that are cut
    logging.getLogger("diffusers.guiders.guider_utils").setLevel(logging.ERROR)
    logging.getLogger("diffusers.hooks").setLevel(logging.ERROR)  # that they are experimental, for every job


def quiet_loops(blocks: ModularPipelineBlocks) -> None:
    """Silence the progress bar of every denoising loop of the tree. Raises ``LoadError`` where there is none."""
    loops = [block for block in walk(blocks) if is_loop(block)]
    if not loops:
        raise LoadError(f"{type(blocks).__name__} has no denoising loop to report steps from")
    for loop in loops:
        loop.set_progress_bar_config(disable=True)


def is_loop(block: ModularPipelineBlocks) -> bool:
    return isinstance(block, LoopSequentialPipelineBlocks)


def job_view(
    pipeline: ModularPipeline, guidance_scale: float | None, port: JobPort, use: GuiderUse | None = None
) -> ModularPipeline:
    """A shallow copy of the pipeline for one job, whose modules are called by way of ``port``.

    ``guidance_scale`` above 1 enables the guider, 1 or less disables it, None leaves it as the model has it; families
    without a guider take the scale as a block input. ``use``: the guider that takes the place of the model's.
    """
    view = copy.copy(pipeline)
    for name, component in pipeline.components.items():
        if isinstance(component, BaseGuidance) and use is not None and guidance_scale is not None:
            setattr(view, name, made(use, guidance_scale, component, pipeline, port))
        elif isinstance(component, BaseGuidance):
            setattr(view, name, _guider(component, guidance_scale))
        elif isinstance(component, SchedulerMixin):
            setattr(view, name, type(component).from_config(component.config))
        elif isinstance(component, torch.nn.Module):
            setattr(view, name, port.stand_in(component))
    return view


def _guider(guider: Any, guidance_scale: float | None) -> Any:
    if guidance_scale is None:
        return guider.new()
    return guider.new(guidance_scale=guidance_scale, enabled=guidance_scale > 1)

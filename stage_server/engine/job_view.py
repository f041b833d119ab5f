"""One job's view of a pipeline: shared weights, its own guider, scheduler and step callback.

Guider and scheduler hold job state, and jobs of one engine interleave: a job that is parked between two steps must
find its own state when it goes on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from diffusers import ModularPipeline
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks, ModularPipelineBlocks

from stage_server.engine.base import LoadError
from stage_server.engine.split import walk

StepDone = Callable[[int, int], None]


class ReportStep(ModularPipelineBlocks):  # type: ignore[misc]  # diffusers publishes no types
    """Last sub-block of a denoising loop: tells the job's view that a step is done. Stateless, shared by all jobs."""

    def __call__(self, components: Any, block_state: Any, i: int, **_: Any) -> tuple[Any, Any]:
        components.step_done(i + 1, len(block_state.timesteps))
        return components, block_state


def hook_loops(blocks: ModularPipelineBlocks) -> None:
    """Add ``ReportStep`` to every denoising loop of the tree, and silence its progress bar. Raises ``LoadError``."""
    loops = [block for block in walk(blocks) if is_loop(block)]
    if not loops:
        raise LoadError(f"{type(blocks).__name__} has no denoising loop to report steps from")
    for loop in loops:
        loop.sub_blocks["report_step"] = ReportStep()
        loop.set_progress_bar_config(disable=True)


def is_loop(block: ModularPipelineBlocks) -> bool:
    return isinstance(block, LoopSequentialPipelineBlocks)


def job_view(pipeline: ModularPipeline, guidance_scale: float | None, step_done: StepDone) -> ModularPipeline:
    """A shallow copy of the pipeline for one job.

    ``guidance_scale`` above 1 enables the guider, 1 or less disables it, None leaves it as the model has it; families
    without a guider take the scale as a block input.
    """
    view = copy.copy(pipeline)
    guider = getattr(pipeline, "guider", None)
    if guider is not None:
        view.guider = _guider(guider, guidance_scale)
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is not None:
        view.scheduler = type(scheduler).from_config(scheduler.config)
    view.step_done = step_done
    return view


def watch_decoded(view: ModularPipeline, look: Callable[[Any], None]) -> None:
    """Show ``look`` what the VAE decodes in this view, before it is rounded to 8 bits a channel.

    The view gets a shallow copy of the VAE, with the same weights: other jobs decode unwatched. It has to be a module,
    for blocks ask modules for the device.
    """
    original = getattr(view, "vae", None)
    if original is None:  # of a family that denoises pixels
        return
    vae, decode = copy.copy(original), original.decode

    def watched(*arguments: Any, **options: Any) -> Any:
        decoded = decode(*arguments, **options)
        look(decoded[0])  # of a tuple, or of a DecoderOutput
        return decoded

    vae.decode = watched
    view.vae = vae


def _guider(guider: Any, guidance_scale: float | None) -> Any:
    if guidance_scale is None:
        return guider.new()
    return guider.new(guidance_scale=guidance_scale, enabled=guidance_scale > 1)

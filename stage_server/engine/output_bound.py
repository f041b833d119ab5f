"""How much a job may leave behind, before it has run."""

from __future__ import annotations

from stage_server.engine.base import StageJob
from stage_server.engine.geometry import Geometry
from stage_server.engine.pictures import encoded_bound, upload_pixels
from stage_server.engine.split import WorkflowSplit
from wire.params import ImageParams
from wire.types import Role

_MOST_FRAMES = 256
"""Of a video whose blocks name no number."""

_CLIP_TOKENS = 77
"""What text encoders take whose blocks have no ``max_sequence_length``."""


def output_bound(job: StageJob, params: ImageParams, workflow: WorkflowSplit, geometry: Geometry, itemsize: int) -> int:
    """Bytes at most of its outputs. ``params``: those of the job, complete; ``itemsize``: bytes of one weight."""
    frames = _frames(params, workflow)
    if job.role is Role.DECODER:
        return frames * encoded_bound(params.width, params.height)
    if job.role is Role.DIT:
        return frames * geometry.dit_bound(params.width, params.height)
    uploads = [upload_pixels(data) for data in job.images.values()]
    tokens = params.max_sequence_length or workflow.parts[job.role].default("max_sequence_length") or _CLIP_TOKENS
    return geometry.encoder_bound(tokens, itemsize, frames * params.width * params.height, uploads)


def _frames(params: ImageParams, workflow: WorkflowSplit) -> int:
    """That the job makes; 1 of a picture."""
    if not workflow.makes_video:
        return 1
    defaults = (part.default("num_frames") for part in workflow.parts.values())
    return params.num_frames or next((default for default in defaults if default), _MOST_FRAMES)

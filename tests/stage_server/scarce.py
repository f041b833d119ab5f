"""``python -m tests.stage_server.scarce``: ``python -m stage_server`` on a device whose memory does not suffice.

The module that does a role's work, and so the device, finds no memory for a job with the seed ``ALWAYS``, and once for
one with the seed ``ONCE``.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

import stage_server.engine.diffusers_engine as engine
from stage_server.__main__ import main
from stage_server.engine.stage_run import Finish, run_stage
from stage_server.engine.stage_task import StageTask
from wire.types import Role

ALWAYS, ONCE = 666, 667
ROLE = "SCARCE_ROLE"
"""Variable that names the stage."""

WORKERS = {Role.ENCODER: "text_encoder", Role.DIT: "transformer", Role.DECODER: "vae"}
_failed: set[int] = set()


def scarce(pipeline: Any, task: StageTask, *rest: Any, **more: Any) -> Finish:
    if task.role != os.environ[ROLE] or task.params.seed not in {ALWAYS, ONCE} - _failed:
        return run_stage(pipeline, task, *rest, **more)
    if task.params.seed == ONCE:
        _failed.add(ONCE)
    module = getattr(pipeline, WORKERS[task.role])
    name = "decode" if task.role is Role.DECODER else "forward"

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    setattr(module, name, fail)
    try:
        return run_stage(pipeline, task, *rest, **more)
    finally:
        delattr(module, name)


if __name__ == "__main__":
    engine.run_stage = scarce
    sys.exit(main())

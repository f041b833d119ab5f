"""``python -m tests.stage_server.hanging``: ``python -m stage_server`` with the emulated engine on a device that hangs.

A job whose width is ``HUNG_WIDTH`` never ends; one of ``LOCKED_WIDTH`` keeps the interpreter's lock besides. Roles
assigned later never load where ``HANG_ON_LOAD`` is in the environment, and with ``HANG_ON_PREPARE`` that job's inputs
never reach the device.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from contextlib import nullcontext

from stage_server.__main__ import main
from stage_server.engine.base import DeviceTurn, JobControl, NamedValues, Outputs, Prepared, StageJob
from stage_server.engine.emulated import EmulatedEngine
from wire.types import Role

HUNG_WIDTH = 80
LOCKED_WIDTH = 96
FOREVER = 10**6


class HangingEngine(EmulatedEngine):
    def prepare(self, job: StageJob, inputs: NamedValues) -> Prepared:
        if job.params.width == HUNG_WIDTH and "HANG_ON_PREPARE" in os.environ:
            time.sleep(FOREVER)
        return super().prepare(job, inputs)

    def run(self, job: StageJob, inputs: NamedValues, control: JobControl) -> Outputs:
        match job.params.width:
            case width if width == HUNG_WIDTH:
                time.sleep(FOREVER)
            case width if width == LOCKED_WIDTH:
                ctypes.PyDLL(None).sleep(FOREVER)  # unlike CDLL it keeps the lock
        return super().run(job, inputs, control)

    def set_roles(self, roles: frozenset[Role], turn: DeviceTurn = nullcontext) -> None:
        if self.roles and "HANG_ON_LOAD" in os.environ:
            with turn():
                time.sleep(FOREVER)
        super().set_roles(roles, turn)


if __name__ == "__main__":
    import stage_server.startup

    stage_server.startup.EmulatedEngine = HangingEngine  # type: ignore[misc]
    sys.exit(main())

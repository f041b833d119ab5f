"""The embedded default: a stage server per role of the bundled model, as child processes that end with the gateway."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from asyncio.subprocess import DEVNULL, Process
from importlib.util import find_spec
from typing import NoReturn

from wire.errors import USER_MISTAKE
from wire.types import Role

BUNDLED_MODEL = "tiny-shapes"

STOP_SECONDS = 5.0
"""Between the polite and the final request to end."""

FIRST_DELAY, LAST_DELAY = 0.5, 10.0
"""Seconds until a server that ended is started again, doubled each time …"""

SOUND_SECONDS = 30.0
"""… unless it had run for so long."""

log = logging.getLogger(__name__)


class LocalStageFailed(Exception):
    """A stage server cannot be started; the text is for the operator."""


class LocalStages:
    """Keeps the stage servers running that serve ``model`` to the gateway at ``endpoint``."""

    def __init__(self, endpoint: str, model: str = BUNDLED_MODEL) -> None:
        """Raises ``LocalStageFailed`` where the packages are missing."""
        if find_spec("torch") is None or find_spec("stage_server") is None:
            raise LocalStageFailed("--local computes in this very environment: pip install 'disagfusion[stage]' first")
        self._endpoint = endpoint
        self._model = model

    async def run(self) -> NoReturn:
        """Until cancelled; then they are stopped. Raises ``LocalStageFailed`` (in a group)."""
        async with asyncio.TaskGroup() as tasks:
            for role in Role:
                tasks.create_task(self._keep_running(role), name=f"local {role}")
        raise AssertionError("the tasks above never return")

    async def _keep_running(self, role: Role) -> NoReturn:
        clock = asyncio.get_running_loop().time
        delay = FIRST_DELAY
        while True:
            began = clock()
            status = await _run_once(self._command(role))
            if status == USER_MISTAKE:
                raise LocalStageFailed(f"the local {role} server cannot be started; its message is above")
            if clock() - began > SOUND_SECONDS:
                delay = FIRST_DELAY
            log.warning("the local %s server ended with status %d; it starts again in %g s", role, status, delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_DELAY)

    def _command(self, role: Role) -> list[str]:
        stage = [sys.executable, "-m", "stage_server", "--role", role, "--model", self._model, "--threads", "1"]
        where = ["--gateway", self._endpoint, "--name", f"local-{role}", "--log-level", "warning"]
        return [sys.executable, "-m", "gateway.shell.tether", str(os.getpid()), *stage, *where]


async def _run_once(command: list[str]) -> int:
    # In a session of its own, Ctrl-C in the terminal reaches the gateway alone, which then decides.
    process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, start_new_session=True)
    try:
        return await process.wait()
    finally:
        await _stop(process)


async def _stop(process: Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()

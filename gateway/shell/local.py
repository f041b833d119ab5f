"""The embedded default: a stage server per role of the bundled model, as child processes that end with the gateway."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import NoReturn

from wire.children import Child, Program
from wire.types import REQUIRED, Role

BUNDLED_MODEL = "tiny-shapes"


class LocalStageFailed(Exception):
    """A stage server cannot be started; the text is for the operator."""


class LocalStages:
    """Keeps the stage servers running that serve ``model`` to the gateway at ``endpoint``."""

    def __init__(self, endpoint: str, model: str = BUNDLED_MODEL, further: Mapping[Role, str] | None = None) -> None:
        """``further``: what to start for optional stages, as folders or hub ids. Raises ``LocalStageFailed`` where the
        packages are missing."""
        if find_spec("torch") is None or find_spec("stage_server") is None:
            raise LocalStageFailed("--local computes in this very environment: pip install 'disagfusion[stage]' first")
        self._endpoint = endpoint
        self._model = model
        self._further = further or {}

    async def run(self) -> NoReturn:
        """Until cancelled; then they are stopped. Raises ``CannotStart`` (in a group)."""
        async with asyncio.TaskGroup() as tasks:
            for role in (*REQUIRED, *self._further):
                tasks.create_task(Child(self._program(role)).run(), name=f"local {role}")
        raise AssertionError("the tasks above never return")

    def _program(self, role: Role) -> Program:
        stage = [sys.executable, "-m", "stage_server", "--role", role, "--model", self._model]
        where = ["--threads", "1", "--gateway", self._endpoint, "--name", f"local-{role}", "--log-level", "warning"]
        which = [f"--{role}", self._further[role]] if role in self._further else []
        return Program(f"the local {role} server", [*stage, *which, *where])

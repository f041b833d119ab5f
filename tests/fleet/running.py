"""The fleet command as processes, and what tests look for beside them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx

from tests.servers import free_port

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0
"""Seconds for what should take a few: the machine may be busy."""
GATEWAY = """
[gateways.main]
port = {}
control_port = {}
data_port = {}
"""
Found = TypeVar("Found")


def until(condition: Callable[[], Found], what: str) -> Found:
    """The first true value of ``condition``."""
    limit = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < limit, f"{what}: not within {PATIENCE:g} s"
        time.sleep(0.05)
    return found


class Commands:
    """Calls ``python -m fleet`` about one description."""

    def __init__(self, folder: Path, described: str, *options: str) -> None:
        self.path = folder / "fleet.toml"
        self.port = free_port()
        self.path.write_text(described + GATEWAY.format(self.port, free_port(), free_port()))
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "DISAGFUSION_STATE_DIR": str(folder / "state")}
        self._options = options

    def command(self, word: str, *more: str) -> list[str]:
        return [sys.executable, "-m", "fleet", word, str(self.path), *more, *self._options]

    def said(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), env=self.environment, text=True, capture_output=True, check=False, timeout=PATIENCE
        )

    def is_ready(self, port: int | None = None) -> bool:
        """``port``: of another gateway than the main one."""
        try:
            return httpx.get(f"http://127.0.0.1:{port or self.port}/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def picture(self, port: int | None = None) -> httpx.Response:
        body: Any = {"prompt": "a red circle", "size": "256x256", "num_inference_steps": 2}
        return httpx.post(f"http://127.0.0.1:{port or self.port}/v1/images/generations", json=body, timeout=PATIENCE)

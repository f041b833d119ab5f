"""Gateways and stage servers in processes of their own, with logs to look at."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.databases import prepared

PATIENCE = 120.0


@contextmanager
def process(log: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DISAGFUSION_", "OTEL_"))}
    clean["DISAGFUSION_STATE_DIR"] = str(prepared(log.parent / "state"))
    with log.open("wb") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", *arguments], env=clean | environment, stdout=output, stderr=output
        )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


async def found(look: Callable[[], object], what: str) -> object:
    async with asyncio.timeout(PATIENCE):
        while not (result := look()):  # noqa: ASYNC110 # logs and counters of other processes are no events
            await asyncio.sleep(0.05)
    return result

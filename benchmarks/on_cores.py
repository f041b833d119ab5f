"""A service of a measurement whose processes are bound to cores."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

READY_SECONDS = 300.0

Processes = Sequence[tuple[Sequence[str], Mapping[str, str], Collection[int]]]
"""Command, environment and cores of each; the gateway is the first."""


@contextmanager
def running(processes: Processes, port: int, log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """While all of them run and the gateway, on ``port``, has the others; what they say goes to ``log``."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        started += (_started(*each, log) for each in processes)
        _wait(lambda: log.read_text(errors="replace").count(" joined with ") >= len(processes) - 1, started, log)
        _wait(lambda: _is_ready(port), started, log)
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


def _started(
    command: Sequence[str], environment: Mapping[str, str], cores: Collection[int], log: Path
) -> subprocess.Popen[bytes]:
    """On these cores only, as its parent is while it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        with log.open("ab") as output:
            return subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    finally:
        os.sched_setaffinity(0, before)


def _wait(holds: Callable[[], bool], processes: Sequence[subprocess.Popen[bytes]], log: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until and all(process.poll() is None for process in processes):
        if holds():
            return
        time.sleep(0.2)
    raise SystemExit(f"the service did not start:\n{log.read_text(errors='replace')}")


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz"):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False

"""Child processes that never outlive their parent, and come back when they crash."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from wire import children
from wire.children import CannotStart, Child, Condition, Program

PARENT = """
import os, subprocess, sys
tethered = [sys.executable, "-m", "wire.tether", str(os.getpid()), sys.executable, "-c", "input()"]
child = subprocess.Popen(tethered, stdin=subprocess.PIPE)
print(child.pid, flush=True)
input()
"""


def program(code: str, stop_seconds: float = 20.0) -> Program:
    return Program("it", [sys.executable, "-c", code], stop_seconds=stop_seconds)


async def run_until(child: Child, condition: Callable[[], object]) -> None:
    """Run ``child`` until ``condition``, then stop it."""
    running = asyncio.create_task(child.run())
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 # other processes have no events
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])


@pytest.mark.skipif(sys.platform != "linux", reason="needs the Linux kernel's help")
def test_a_tethered_program_dies_with_its_parent_even_by_kill_9() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.send_signal(signal.SIGKILL)
    child.wait(10)


def test_a_program_whose_parent_is_gone_is_not_started() -> None:
    command = [sys.executable, "-m", "wire.tether", "1", sys.executable, "-c", "print('started')"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "started" not in result.stdout


async def test_one_that_crashes_is_started_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(children, "FIRST_DELAY", 0.01)
    log, seen = tmp_path / "log", []
    child = Child(
        program(f"open({str(log)!r}, 'a').write('x'); raise SystemExit(1)"),
        on_change=lambda child: seen.append(child.condition),
    )
    await run_until(child, lambda: child.starts >= 3)
    assert log.stat().st_size >= 2
    assert seen[:3] == [Condition.RUNNING, Condition.WAITING, Condition.RUNNING]
    assert seen[-1] is Condition.STOPPED


async def test_one_that_ignores_a_polite_request_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = (
        "import pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    )
    child, pids = Child(program(code, stop_seconds=0.1)), set()
    await run_until(child, lambda: pids.add(child.pid) or ready.exists())
    assert not any(psutil.pid_exists(pid) for pid in pids if pid)


async def test_one_that_cannot_start_is_not_tried_again() -> None:
    child = Child(program("raise SystemExit(2)"))
    with pytest.raises(CannotStart, match="it cannot be started"):
        await child.run()
    assert (child.starts, child.condition) == (1, Condition.REFUSED)


async def test_what_it_writes_comes_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "LONGEST_LINE", 100)
    lines: list[str] = []
    code = "import sys; print('one', flush=True); sys.stderr.write('x' * 150 + '\\nno newline'); raise SystemExit(2)"
    with pytest.raises(CannotStart):
        await Child(program(code), lines.append).run()
    assert {"one", "no newline"} <= set(lines)
    assert sum(line.count("x") for line in lines) == 150

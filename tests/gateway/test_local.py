"""Child processes that never outlive the gateway, and come back when they crash."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import psutil
import pytest

from gateway.shell import local
from gateway.shell.local import LocalStageFailed, LocalStages
from wire.types import Role

ENDPOINT = "tcp://127.0.0.1:1"
PARENT = """
import os, subprocess, sys
tethered = [sys.executable, "-m", "gateway.shell.tether", str(os.getpid()), sys.executable, "-c", "input()"]
child = subprocess.Popen(tethered, stdin=subprocess.PIPE)
print(child.pid, flush=True)
input()
"""


def program(code: str):
    return lambda role: [sys.executable, "-c", code]


async def run_for(stages: LocalStages, condition):
    """Run ``stages`` until ``condition``, then stop them."""
    running = asyncio.create_task(stages.run())
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 # other processes have no events
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])


@pytest.mark.skipif(sys.platform != "linux", reason="needs the Linux kernel's help")
def test_a_tethered_program_dies_with_its_parent_even_by_kill_9():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.send_signal(signal.SIGKILL)
    child.wait(10)


def test_a_program_whose_parent_is_gone_is_not_started():
    command = [sys.executable, "-m", "gateway.shell.tether", "1", sys.executable, "-c", "print('started')"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "started" not in result.stdout


def test_stage_servers_of_every_role_are_told_where_the_gateway_is():
    command = LocalStages(ENDPOINT)._command(Role.DIT)
    assert command[1:3] == ["-m", "gateway.shell.tether"]
    options = command[command.index("stage_server") + 1 :]
    assert options[:4] == ["--role", "dit", "--model", "tiny-shapes"]
    assert ENDPOINT in options


async def test_a_crashed_server_is_started_again_with_growing_delays(monkeypatch, tmp_path):
    stages = LocalStages(ENDPOINT)
    log = tmp_path / "log"
    monkeypatch.setattr(local, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(stages, "_command", program(f"open({str(log)!r}, 'a').write('x'); raise SystemExit(1)"))
    await run_for(stages, lambda: log.exists() and log.stat().st_size >= 2 * len(Role))


async def test_a_server_that_ignores_a_polite_request_is_killed(monkeypatch, tmp_path):
    stages = LocalStages(ENDPOINT)
    code = (
        "import os, pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch(); time.sleep(60)"
    )
    monkeypatch.setattr(local, "STOP_SECONDS", 0.1)
    monkeypatch.setattr(stages, "_command", program(code))
    await run_for(stages, lambda: len(list(tmp_path.iterdir())) == len(Role))
    assert not any(psutil.pid_exists(int(path.name)) for path in tmp_path.iterdir())


async def test_a_server_that_cannot_start_is_not_tried_again(monkeypatch):
    stages = LocalStages(ENDPOINT)
    monkeypatch.setattr(stages, "_command", program("raise SystemExit(2)"))
    with pytest.raises(BaseExceptionGroup) as group:
        await stages.run()
    assert isinstance(group.value.exceptions[0], LocalStageFailed)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(local, "find_spec", lambda name: None)
    with pytest.raises(LocalStageFailed, match=r"pip install 'disagfusion\[stage\]'"):
        LocalStages(ENDPOINT)

"""``disagfusion top`` in front of a real gateway with emulated stage servers, and while that gateway is restarted."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.services

PROFILE = Path(__file__).with_name("slow.toml")
KEY = "an-operators-long-key"


@pytest.fixture
def ports(free_port) -> tuple[int, int]:
    return free_port(), free_port()


@pytest.fixture
def gateway(start, listening, ports):
    """Starts one, each time at the same addresses."""

    def begin():
        options = ("--port", str(ports[0]), "--control-bind", f"tcp://127.0.0.1:{ports[1]}")
        process = start("-m", "gateway", *options, DISAGFUSION_ADMIN_KEY=KEY)
        return process, listening(process)

    return begin


@pytest.fixture
def servers(start, ports):
    for name, roles in (("gpu-1", "encoder,decoder"), ("gpu-2", "dit")):
        emulated = ("--engine", "emulated", "--profile", str(PROFILE), "--gateway", f"tcp://127.0.0.1:{ports[1]}")
        start("-m", "stage_server", "--role", roles, "--name", name, *emulated)


def environment() -> dict[str, str]:
    return {**os.environ, "DISAGFUSION_ADMIN_KEY": KEY, "COLUMNS": "140", "LINES": "50", "TERM": "xterm-256color"}


def test_one_state_of_a_real_gateway(gateway, servers, is_ready, until) -> None:
    _, url = gateway()
    until(lambda: is_ready(url), "stage servers")
    assert httpx.post(f"{url}/v1/images/generations", json={"prompt": "a star", "size": "64x64"}).status_code == 200
    command = [sys.executable, "-m", "cli", "top", "--once", "--url", url]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for words in ("gpu-1", "encoder decoder", "gpu-2", "done", "came with dit", "slow"):
        assert words in done.stdout, done.stdout


def test_a_terminal_follows_a_gateway_over_its_restart(gateway, servers, is_ready, until) -> None:
    first, url = gateway()
    until(lambda: is_ready(url), "stage servers")
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "cli", "top", "--url", url]
    top = subprocess.Popen(command, env=environment(), stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    seen = bytearray()

    def shows(words: str, after: int = 0) -> bool:
        while select.select([main], [], [], 0)[0]:
            assert top.poll() is None, seen.decode()
            seen.extend(os.read(main, 65536))
        return words in seen[after:].decode(errors="replace")

    until(lambda: shows("gpu-2"), "the first state")
    assert first.finish() == 0
    until(lambda: shows("asked again in"), "a lost gateway")
    lost = len(seen)
    gateway()
    until(lambda: shows("came with dit", lost), "the second gateway's state")
    top.send_signal(signal.SIGINT)
    assert top.wait(10) == 130
    assert b"Traceback" not in seen
    os.close(main)

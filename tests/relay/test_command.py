"""The relay as a process: what it refuses, what it says, how it ends."""

from __future__ import annotations

import logging
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from stage_server.command_line import InvalidSettings
from stage_server.data_sockets import DataSockets
from stage_server.relay.command import main
from stage_server.relay.settings import read_relay_settings
from stage_server.settings import read_settings
from tests.servers import free_port
from wire.to_stage import TryPeer
from wire.types import ServerId

ROOT = Path(__file__).parents[2]
WAIT = 90.0
EMULATED = (
    "--engine",
    "emulated",
    "--profile",
    "tiny-shapes-cpu",
    "--role",
    "dit",
    "--gateway",
    "tcp://127.0.0.1:5600",
)
NOTHING = (lambda _: None, bytearray, ["a/1"])
"""What is served, room for what is fetched, and who serves."""


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """``main`` sends it to what is standard error then."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@contextmanager
def running(*options: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "stage_server", "relay", "--bind", "tcp://127.0.0.1:*", *options]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def says(process: subprocess.Popen[str], pattern: str) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(pattern, line):
            return found[1]
    raise AssertionError(f"it ended, and did not say {pattern}")


def test_it_counts_and_ends_when_told() -> None:
    with running("--metrics-port", "0") as process:
        url = says(process, r"metrics at (\S+)")
        says(process, r"meet at (\S+)")
        page = httpx.get(url, timeout=WAIT).text
        assert re.search(r"^disagfusion_relay_servers 0.0$", page, re.MULTILINE)
        assert re.search(r'^disagfusion_relay_denied_total{reason="unknown"} 0.0$', page, re.MULTILINE)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bind", "tcp://0.0.0.0:5700"), "there is no --relay-key: set one, here and at the stage servers"),
        (("--bind", "0.0.0.0:5700"), "write tcp://HOST:PORT"),
        (("--bind", "tcp://127.0.0.1:99999"), "ports go from 1 to 65535"),
        (("--bind", "tcp://192.0.2.1:5700", "--insecure"), "cannot be listened at: Cannot assign requested address"),
        (("--max-streams", "0"), "--max-streams"),
    ],
)
def test_what_it_refuses(options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(("--bind", f"tcp://127.0.0.1:{taken.getsockname()[1]}")) == 2
    assert "choose another port" in capsys.readouterr().err


def test_the_key_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISAGFUSION_STAGE_RELAY_KEY", "of both")
    assert read_relay_settings(["--bind", "tcp://0.0.0.0:5700"]).relay_key.get_secret_value() == "of both"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--relay", "192.0.2.1:5700"), "--relay: '192.0.2.1:5700' is no address; write tcp://HOST:PORT"),
        (("--relay", "tcp://192.0.2.1:5700"), "without CURVE keys all that goes through it could be read"),
        (("--relay-key", "k"), "add --relay tcp://HOST:PORT"),
        (("--relay", ",".join(f"tcp://127.0.0.1:{n}" for n in range(5))), "--relay"),
    ],
)
def test_what_a_stage_server_refuses(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidSettings, match=re.escape(message)):
        read_settings([*EMULATED, *options])


def test_relays_are_named_like_gateways() -> None:
    given = ("--relay", "tcp://127.0.0.1:1,tcp://127.0.0.1:2", "--relay", "tcp://127.0.0.1:1")
    assert read_settings([*EMULATED, *given]).relay == ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2")


def test_with_a_relay_every_address_of_the_machine_may_be_bound() -> None:
    """Nobody elsewhere has to reach it directly; on this machine it is reached."""
    everywhere = ("--data-bind", "tcp://0.0.0.0:*", "--insecure")
    sockets = DataSockets(
        read_settings([*EMULATED, *everywhere, "--relay", f"tcp://127.0.0.1:{free_port()}"]), *NOTHING
    )
    try:
        assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+", sockets.endpoint)
        assert sockets.find(TryPeer(server=ServerId("a/1"), endpoint=sockets.endpoint)) == ""
        assert len(sockets.relays) == 1
    finally:
        sockets.close()
    with pytest.raises(InvalidSettings, match=re.escape("--data-bind tcp://0.0.0.0:* is every address")):
        DataSockets(read_settings([*EMULATED, *everywhere]), *NOTHING)

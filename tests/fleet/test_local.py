"""``python -m fleet up`` on this machine: real processes, emulated stages."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.curve import generate_keys
from tests.fleet.running import PATIENCE, Commands, until
from tests.servers import free_port

pytestmark = pytest.mark.services
SHAPES = """
[models.shapes]
engine = "emulated"
profile = "tiny-shapes-cpu"
options = { time_scale = 0.1 }
"""
DESCRIBED = f"""
name = "tested"
{SHAPES}
[keys]
curve_gateways = {{ file = "gateways.pair" }}
curve_servers = {{ file = "servers.pair" }}
[relays.front]
port = PORT
[pools.a]
models = ["shapes"]
begin = [["encoder", "decoder"], ["dit"]]
min = 2
max = 4
drain_seconds = 5
"""

SCALED = f"""
name = "scaled"
{SHAPES}
[pools.a]
models = ["shapes"]
min = 0
max = 1
drain_seconds = 5
[keys]
admin_key = {{ env = "FLEET_ADMIN_KEY" }}
"""


class LocalFleet(Commands):
    def __init__(self, folder: Path, described: str = DESCRIBED) -> None:
        super().__init__(folder, described.replace("PORT", str(free_port())))
        for name in ("gateways.pair", "servers.pair"):
            pair = generate_keys()
            (folder / name).write_text(f"{pair.public} {pair.secret}\n")
        self.log = folder / "log"
        self.up: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.up = subprocess.Popen(self.command("up"), env=self.environment, stderr=log)
        until(self._is_serving, "the fleet is ready")

    def _is_serving(self) -> bool:
        assert self.up is not None
        assert self.up.poll() is None, self.log.read_text()
        return self.is_ready()

    def processes(self) -> list[psutil.Process]:
        assert self.up is not None
        return psutil.Process(self.up.pid).children(recursive=True)

    def servers(self) -> dict[str, psutil.Process]:
        named = {}
        for process in self.processes():
            words = _words(process)
            if "--name" in words and "wire.tether" not in words:
                named[words[words.index("--name") + 1]] = process
        return named

    def joined(self) -> set[str]:
        """Servers that have said that others reach them through the relay."""
        said = "others reach this server through the relay tcp://127.0.0.1:"
        return {line.split()[0] for line in self.log.read_text().splitlines() if said in line}

    def named(self, *words: str) -> psutil.Process:
        """The process whose command line has these words, one after the other."""
        return until(lambda: next((each for each in self.processes() if _has(_words(each), words)), None), str(words))

    def end(self) -> None:
        if self.up is not None:
            self.up.kill()
            self.up.wait()


def _words(process: psutil.Process) -> list[str]:
    """Of its command line; none once it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _has(line: Sequence[str], words: Sequence[str]) -> bool:
    return "wire.tether" not in line and any(tuple(line[at : at + len(words)]) == words for at in range(len(line)))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    fleet = LocalFleet(tmp_path)
    fleet.start()
    yield fleet
    fleet.end()


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=PATIENCE)[1]


def test_up_status_scale_and_down_from_another_shell(fleet: LocalFleet) -> None:
    assert fleet.picture().status_code == 200
    status = fleet.said("status")
    assert status.returncode == 0
    assert "pool a: 2 wanted of 2 to 4" in status.stdout
    assert re.search(r"front +running .* a relay, port \d+", status.stdout)
    assert fleet.said("scale", "a=3").returncode == 0
    until(lambda: "a-3" in fleet.servers() and "a-3" in fleet.joined(), "the third server runs and has joined")
    assert fleet.said("scale", "a=2").returncode == 0
    assert set(fleet.servers()) == {"a-1", "a-2"}
    refused = fleet.said("scale", "a=5")
    assert (refused.returncode, refused.stderr) == (2, "fleet: a has 2 to 4 servers, not 5: see min and max\n")
    twice = fleet.said("up")
    assert twice.returncode == 2
    assert "is up already" in twice.stderr
    processes = fleet.processes()
    assert fleet.said("down").returncode == 0
    assert gone(processes)
    assert fleet.up is not None
    assert fleet.up.wait(PATIENCE) == 0
    assert fleet.said("status").returncode == 2
    lines = fleet.log.read_text().splitlines()
    assert any(line.startswith("a-1") and " | " in line for line in lines)
    assert any(line.startswith("main") and " | " in line for line in lines)
    assert fleet.joined() >= {"a-1", "a-2", "a-3"}


def test_a_killed_server_is_back(fleet: LocalFleet) -> None:
    before = fleet.servers()["a-2"]
    before.kill()
    until(lambda: fleet.servers().get("a-2", before) != before, "a-2 runs again")
    assert fleet.picture().status_code == 200
    assert "started again once" in fleet.said("status").stdout


def test_a_killed_supervisor_leaves_no_orphans_and_up_begins_anew(fleet: LocalFleet) -> None:
    processes = fleet.processes()
    assert fleet.up is not None
    fleet.up.kill()
    assert gone(processes)
    fleet.up.wait()
    fleet.start()
    assert fleet.picture().status_code == 200


def test_ctrl_c_drains(fleet: LocalFleet) -> None:
    processes = fleet.processes()
    assert fleet.up is not None
    fleet.up.send_signal(signal.SIGINT)
    assert fleet.up.wait(PATIENCE) == 0
    assert gone(processes)


def test_the_servers_of_a_killed_gateway_join_the_other(tmp_path: Path) -> None:
    port, control = free_port(), free_port()
    second = f"[gateways.second]\nport = {port}\ncontrol_port = {control}\ndata_port = {free_port()}\n"
    fleet = LocalFleet(tmp_path, DESCRIBED.replace("min = 2", "min = 4") + second)

    def both_are_ready() -> bool:
        return fleet.is_ready() and fleet.is_ready(port)

    try:
        fleet.start()
        until(both_are_ready, "both gateways have servers")
        killed = fleet.named("gateway", "--port", str(fleet.port))
        killed.kill()
        assert fleet.picture(port).status_code == 200
        until(lambda: fleet.named("gateway", "--port", str(fleet.port)).pid != killed.pid, "it runs again")
        until(both_are_ready, "servers are spread again")
        assert fleet.picture().status_code == 200
        processes = fleet.processes()
        assert fleet.said("down").returncode == 0
        assert gone(processes)
    finally:
        fleet.end()


def test_a_pool_is_empty_while_nobody_asks_and_comes_back_for_a_request(tmp_path: Path) -> None:
    fleet = LocalFleet(tmp_path, SCALED)
    with fleet.path.open("a") as described:  # of its gateway
        described.write("settings = { scaling_idle_seconds = 2 }\n")
    fleet.environment["FLEET_ADMIN_KEY"] = "the-admin-key-0123"
    try:
        fleet.start()
        assert fleet.picture().status_code == 200
        until(lambda: not fleet.servers(), "nobody asks")
        assert fleet.is_ready()
        assert "0 wanted of 0 to 1" in fleet.said("status").stdout
        assert fleet.picture().status_code == 200, "it waits for a server to start"
        refused = fleet.said("scale", "a=1")
        assert (refused.returncode, "scaled by prediction" in refused.stderr) == (2, True)
        assert fleet.said("down").returncode == 0
    finally:
        fleet.end()


def test_a_gateway_that_cannot_be_started_ends_it(tmp_path: Path) -> None:
    fleet = LocalFleet(tmp_path)
    fleet.path.write_text(fleet.path.read_text() + '[gateways.main.settings]\nhost = "0.0.0.0"\n')
    done = fleet.said("up")
    assert done.returncode == 2
    assert "fleet: the gateway 'main' cannot be started; its message is above" in done.stderr

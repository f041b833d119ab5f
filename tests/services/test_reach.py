"""Servers in network namespaces that cannot reach each other: no request fails, and everybody is told why.

Each machine is a namespace on one bridge: the gateway at 10.77.0.1, ``a`` (encoder, decoder) at .2, dits at .3 and .4.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import zmq

from tests.needed import needs

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
HOSTS = {"gw": "10.77.0.1", "a": "10.77.0.2", "d1": "10.77.0.3", "d2": "10.77.0.4"}
PORT = 5601

pytestmark = [pytest.mark.services, needs("iproute2"), pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


NUMBERS = count()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Machines:
    """Namespaces with processes in them."""

    def __init__(self, folder: Path) -> None:
        # Names of their own each time: the kernel takes its time to forget the interfaces of a namespace that is gone.
        self.tag = f"{os.getpid()}x{next(NUMBERS)}"
        self.prefix = f"reach{self.tag}"
        self.folder = folder
        self.keys = {name: [key.decode() for key in zmq.curve_keypair()] for name in HOSTS}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        ip("link", "add", f"br{self.tag}", "type", "bridge")
        ip("link", "set", f"br{self.tag}", "up")
        for number, (name, address) in enumerate(HOSTS.items()):
            space, veth = f"{self.prefix}-{name}", f"v{self.tag}-{number}"
            ip("netns", "add", space)
            ip("link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", veth, "master", f"br{self.tag}", "up")
            self.ip(name, "addr", "add", f"{address}/24", "dev", "eth0")
            self.ip(name, "link", "set", "eth0", "up")
            self.ip(name, "link", "set", "lo", "up")

    def ip(self, name: str, *words: str) -> None:
        ip("-n", f"{self.prefix}-{name}", *words)

    def drop(self, name: str, other: str) -> None:
        """What ``name`` sends to ``other`` gets lost, so answers as well."""
        self.ip(name, "route", "add", "blackhole", f"{HOSTS[other]}/32")

    def mend(self, name: str, other: str) -> None:
        self.ip(name, "route", "del", "blackhole", f"{HOSTS[other]}/32")

    def start(self, name: str, *command: str, **environment: str) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("DISAGFUSION_")}
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                ["ip", "netns", "exec", f"{self.prefix}-{name}", sys.executable, *command],
                env=clean | environment, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
            )  # fmt: skip

    def gateway(self) -> None:
        allowed = ", ".join(f'"{name}": "{self.keys[name][0]}"' for name in HOSTS if name != "gw")
        self.start(
            "gw", "-m", "gateway",
            DISAGFUSION_PORT="8000",
            DISAGFUSION_CONTROL_BIND="tcp://10.77.0.1:5600",
            DISAGFUSION_DATA_BIND="tcp://10.77.0.1:5601",
            DISAGFUSION_CURVE_PUBLIC_KEY=self.keys["gw"][0],
            DISAGFUSION_CURVE_SECRET_KEY=self.keys["gw"][1],
            DISAGFUSION_CURVE_ALLOWED_KEYS=f"{{{allowed}}}",
        )  # fmt: skip

    def stage(self, name: str, roles: str, *options: str, gateway_key: str = "") -> None:
        gateway = () if "--gateway" in options else ("--gateway", "tcp://10.77.0.1:5600")
        bind = () if "--data-bind" in options else ("--data-bind", f"tcp://{HOSTS[name]}:{PORT}")
        self.start(
            name, "-m", "stage_server", "--engine", "emulated", "--profile", "flux.1-dev-h100", "--time-scale", "0.05",
            "--role", roles, "--name", name, *gateway, *bind, *options,
            DISAGFUSION_STAGE_CURVE_PUBLIC_KEY=self.keys[name][0],
            DISAGFUSION_STAGE_CURVE_SECRET_KEY=self.keys[name][1],
            DISAGFUSION_STAGE_CURVE_GATEWAY_KEY=gateway_key or self.keys["gw"][0],
        )  # fmt: skip

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def says(self, name: str, pattern: str) -> str:
        """Wait until its log matches."""
        return until(lambda: (found := re.search(pattern, self.log(name))) and found[0], f"{name}: {pattern}")

    def ready(self) -> str:
        """The body of ``/readyz``, whatever its status."""
        return self.curl("http://127.0.0.1:8000/readyz")

    def curl(self, url: str, body: str = "") -> str:
        program = (
            "import sys, urllib.request, urllib.error\n"
            "data = sys.argv[2].encode() or None\n"
            "ask = urllib.request.Request(sys.argv[1], data, {'content-type': 'application/json'})\n"
            "try: print(urllib.request.urlopen(ask, timeout=60).read().decode()[:2000])\n"
            "except urllib.error.HTTPError as error: print(error.code, error.read().decode())\n"
            "except OSError as error: print(error)\n"
        )
        space = f"{self.prefix}-gw"
        done = subprocess.run(
            ["ip", "netns", "exec", space, sys.executable, "-c", program, url, body], capture_output=True, text=True
        )
        return done.stdout

    def draw(self, count: int) -> list[str]:
        """So many pictures, some at once; what came instead of a picture."""
        body = '{"prompt": "x", "size": "512x512", "num_inference_steps": 4, "response_format": "b64_json"}'

        async def all_of_them() -> list[str]:
            turns = asyncio.Semaphore(4)

            async def one() -> str:
                async with turns:
                    return await asyncio.to_thread(self.curl, "http://127.0.0.1:8000/v1/images/generations", body)

            return await asyncio.gather(*(one() for _ in range(count)))

        return [answer for answer in asyncio.run(all_of_them()) if "b64_json" not in answer]

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        for name in HOSTS:
            ip("netns", "del", f"{self.prefix}-{name}")
        ip("link", "del", f"br{self.tag}")


def until(condition: Callable[[], str | bool | None], what: str) -> str:
    limit = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < limit, f"{what}: not within {PATIENCE:g} s"
        time.sleep(0.1)
    return str(found)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path)
    try:
        made.gateway()
        made.stage("a", "encoder,decoder")
        yield made
    finally:
        made.close()


def both(machines: Machines, *options: str) -> None:
    """A good dit and one with these options."""
    machines.stage("d1", "dit")
    until(lambda: '"status":"ready"' in machines.ready(), "ready")
    machines.stage("d2", "dit", *options)
    machines.says("gw", "d2/.* joined")


@pytest.mark.parametrize(
    ("advertised", "fault"),
    [
        ("tcp://10.77.0.4:5999", "connection refused"),
        ("tcp://10.77.0.99:5601", "no answer within|No route"),
        ("tcp://nowhere.invalid:5601", "does not resolve"),
        ("tcp://10.77.0.3:5601", "its CURVE keys are not those expected"),
    ],
    ids=["dead", "wrong", "unresolvable", "another server's"],
)
def test_a_wrong_address_costs_no_request(machines: Machines, advertised: str, fault: str) -> None:
    both(machines, "--data-advertise", advertised)
    assert machines.draw(20) == []
    line = machines.says("gw", "WARNING.*d2/.* gets no .*dit.*")
    assert re.search(fault, line), line
    assert advertised in line
    assert "the gateway" in line
    assert "--data-advertise" in line
    machines.says("d2", "this server gets no .*dit.* work: .*" + re.escape(advertised))
    assert '"dit":1' in machines.ready()


def test_the_only_dit_with_a_wrong_address_is_none(machines: Machines) -> None:
    machines.stage("d2", "dit", "--data-advertise", "tcp://10.77.0.4:5999")
    machines.says("gw", "gets no")
    answer = machines.ready()
    assert answer.startswith("503"), answer
    assert "tcp://10.77.0.4:5999: connection refused" in answer


def test_a_firewall_in_mid_run_and_its_end(machines: Machines) -> None:
    both(machines)
    assert machines.draw(4) == []
    machines.drop("d2", "a")
    assert machines.draw(20) == []
    machines.mend("d2", "a")
    until(lambda: "set_aside" not in machines.ready() and '"dit":2' in machines.ready(), "both dits again")
    assert machines.draw(4) == []


def test_a_fetcher_that_is_cut_off_from_everybody(machines: Machines) -> None:
    """It reaches the gateway, which reaches it."""
    both(machines)
    machines.drop("d2", "a")
    assert machines.draw(20) == []
    machines.says("gw", "WARNING.*d2/.* gets no .*dit.*it cannot fetch from a: ")
    assert '"dit":1' in machines.ready()


def test_a_loopback_address_refuses_to_start(machines: Machines) -> None:
    machines.stage("d2", "dit", "--data-bind", "tcp://127.0.0.1:*")
    assert machines.processes["d2"].wait(PATIENCE) == 2
    assert "set --data-bind tcp://HOST:*" in machines.log("d2")


@pytest.mark.parametrize(
    ("gateway", "words"),
    [
        ("tcp://nowhere.invalid:5600", "does not resolve"),
        ("tcp://10.77.0.1:5999", "connection refused"),
        ("tcp://10.77.0.99:5600", "no answer within|No route"),
    ],
)
def test_why_the_gateway_is_not_reached(machines: Machines, gateway: str, words: str) -> None:
    machines.stage("d1", "dit", "--gateway", gateway)
    machines.says("d1", f"no gateway is reachable at {gateway}.*({words})")


def test_a_wrong_key_of_the_gateway_or_of_the_server(machines: Machines) -> None:
    machines.says("gw", "a/.* joined")
    machines.stage("d1", "dit", gateway_key=machines.keys["a"][0])
    machines.says("d1", "does not accept the CURVE keys")
    machines.says("d1", "no gateway lets this server in")
    assert "is reachable" not in machines.log("d1")
    stranger = zmq.curve_keypair()
    machines.keys["d2"] = [key.decode() for key in stranger]
    machines.stage("d2", "dit")
    assert stranger[0].decode() in machines.says("gw", "a connection from 10.77.0.4 was refused: .*")

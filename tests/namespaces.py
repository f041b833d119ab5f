"""Machines for a test: network namespaces on one bridge, with processes of ours in them."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

import zmq

ROOT = Path(__file__).parents[1]
PATIENCE = 240.0
GATEWAY = "10.77.0.1"
PORT = 5601

NUMBERS = count()


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert not done.returncode, f"ip {' '.join(words)}: {done.stderr}"


class Machines:
    """Namespaces with processes in them. ``gw`` is the gateway's."""

    def __init__(self, folder: Path, hosts: Mapping[str, str]) -> None:
        """``hosts``: name → address on the bridge; without one it is on no network yet."""
        # Names of their own each time: the kernel takes its time to forget the interfaces of a namespace that is gone.
        self.tag = f"{os.getpid()}x{next(NUMBERS)}"
        self.prefix = f"reach{self.tag}"
        self.folder = folder
        self.hosts = hosts
        self.keys = {name: [key.decode() for key in zmq.curve_keypair()] for name in hosts}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        ip("link", "add", f"br{self.tag}", "type", "bridge")
        ip("link", "set", f"br{self.tag}", "up")
        for number, (name, address) in enumerate(hosts.items()):
            space, veth = f"{self.prefix}-{name}", f"v{self.tag}-{number}"
            ip("netns", "add", space)
            self.ip(name, "link", "set", "lo", "up")
            if not address:
                continue
            ip("link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", veth, "master", f"br{self.tag}", "up")
            self.ip(name, "addr", "add", f"{address}/24", "dev", "eth0")
            self.ip(name, "link", "set", "eth0", "up")

    def ip(self, name: str, *words: str) -> None:
        ip("-n", f"{self.prefix}-{name}", *words)

    def drop(self, name: str, other: str) -> None:
        """What ``name`` sends to ``other`` gets lost, so answers as well."""
        self.ip(name, "route", "add", "blackhole", f"{self.hosts[other]}/32")

    def mend(self, name: str, other: str) -> None:
        self.ip(name, "route", "del", "blackhole", f"{self.hosts[other]}/32")

    def run(self, name: str, *command: str) -> None:
        ip("netns", "exec", f"{self.prefix}-{name}", *command)

    def start(self, name: str, *command: str, **environment: str) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("DISAGFUSION_")}
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                ["ip", "netns", "exec", f"{self.prefix}-{name}", sys.executable, *command],
                env=clean | environment, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
            )  # fmt: skip

    def gateway(self) -> None:
        allowed = ", ".join(f'"{name}": "{self.keys[name][0]}"' for name in self.hosts if name != "gw")
        self.start(
            "gw", "-m", "gateway",
            DISAGFUSION_PORT="8000",
            DISAGFUSION_CONTROL_BIND="tcp://10.77.0.1:5600",
            DISAGFUSION_DATA_BIND="tcp://10.77.0.1:5601",
            DISAGFUSION_CURVE_PUBLIC_KEY=self.keys["gw"][0],
            DISAGFUSION_CURVE_SECRET_KEY=self.keys["gw"][1],
            DISAGFUSION_CURVE_ALLOWED_KEYS=f"{{{allowed}}}",
        )  # fmt: skip

    def stage(self, name: str, roles: str, *options: str, gateway_key: str = "", **environment: str) -> None:
        gateway = () if "--gateway" in options else ("--gateway", "tcp://10.77.0.1:5600")
        bind = () if "--data-bind" in options else ("--data-bind", f"tcp://{self.hosts[name]}:{PORT}")
        self.start(
            name, "-m", "stage_server", "--engine", "emulated", "--profile", "flux.1-dev-h100", "--time-scale", "0.05",
            "--role", roles, "--name", name, *gateway, *bind, *options,
            DISAGFUSION_STAGE_CURVE_PUBLIC_KEY=self.keys[name][0],
            DISAGFUSION_STAGE_CURVE_SECRET_KEY=self.keys[name][1],
            DISAGFUSION_STAGE_CURVE_GATEWAY_KEY=gateway_key or self.keys["gw"][0],
            **environment,
        )  # fmt: skip

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def says(self, name: str, pattern: str) -> str:
        """Wait until its log matches."""
        return until(lambda: (found := re.search(pattern, self.log(name))) and found[0], f"{name}: {pattern}")

    def ready(self) -> str:
        """The body of ``/readyz``, whatever its status."""
        return self.curl("http://127.0.0.1:8000/readyz")

    def curl(self, url: str, body: str = "", most: int = 2000) -> str:
        """What the gateway's machine gets there, ``most`` characters of it."""
        program = (
            "import sys, urllib.request, urllib.error\n"
            "data = sys.argv[2].encode() or None\n"
            "ask = urllib.request.Request(sys.argv[1], data, {'content-type': 'application/json'})\n"
            "try: print(urllib.request.urlopen(ask, timeout=60).read().decode()[:int(sys.argv[3])])\n"
            "except urllib.error.HTTPError as error: print(error.code, error.read().decode())\n"
            "except OSError as error: print(error)\n"
        )
        space = f"{self.prefix}-gw"
        done = subprocess.run(
            ["ip", "netns", "exec", space, sys.executable, "-c", program, url, body, str(most)],
            capture_output=True,
            text=True,
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
        for name in self.hosts:
            ip("netns", "del", f"{self.prefix}-{name}")
        ip("link", "del", f"br{self.tag}")


def until(condition: Callable[[], str | bool | None], what: str) -> str:
    limit = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < limit, f"{what}: not within {PATIENCE:g} s"
        time.sleep(0.1)
    return str(found)

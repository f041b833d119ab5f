"""Eight emulated stage servers behind the gateway, all of them processes: Qwen-Image on RTX 4090s, faster than it is.

No server has room for every role: each has two, those that serve the mix best.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.gateway_processes import Subject, await_roles, emulated, service
from benchmarks.scheduling.live import fast_profile
from scheduler.cost.profile import load
from scheduler.sim.bound import with_best_roles
from scheduler.sim.setup import ServerSetup
from scheduler.sim.suite import fleet
from scheduler.sim.workload import Kind, Phase

SERVERS = 8
MEMORY_BYTES = 24 * 10**9


@dataclass(frozen=True, slots=True)
class Fleet:
    gateway: Subject
    servers: tuple[ServerSetup, ...]
    processes: dict[str, psutil.Process]
    """By name, the gateway's among them."""


@contextmanager
def running(folder: Path, phase: Phase, faster: float) -> Iterator[Fleet]:
    """With the roles that serve the phase's mix best, until the block ends; all have joined when it begins."""
    path = fast_profile(folder, faster, MEMORY_BYTES)
    servers = with_best_roles(fleet(load(path), SERVERS), phase)
    with ExitStack() as stack:
        gateway, control = stack.enter_context(service(folder / "state"))
        processes = {"gateway": gateway.process}
        for server in servers:
            roles = ",".join(sorted(server.roles))
            stage = emulated(control, server.name, roles, ["--profile", str(path)])
            processes[server.name] = stack.enter_context(stage)
        await_roles(gateway, sum(len(server.roles) for server in servers))
        yield Fleet(gateway, servers, processes)


def body(kind: Kind, seed: int) -> bytes:
    """A request that nothing else is like: its seed gives it the device alone."""
    size = f"{kind.width}x{kind.height}"
    asked = {"prompt": f"circle {seed}", "size": size, "num_inference_steps": kind.steps, "guidance_scale": 1.0}
    return json.dumps(asked | {"seed": seed}).encode()

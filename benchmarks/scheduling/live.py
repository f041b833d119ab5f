"""Row 13: the real gateway and eight emulated stage servers, against the simulator, on one and the same trace.

python -m benchmarks.scheduling.live [--requests 2100] [--output docs/results]

Workload 2, ten times faster: the profile's times are a tenth of the published ones, for the stage servers, for what the
gateway's scheduler believes and for the simulator alike. HTTP, ZeroMQ, processes and role changes are real; the devices
wait instead of computing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import httpx

from benchmarks.ports import free_port
from benchmarks.scheduling import workloads
from benchmarks.scheduling.results import Goal, Report, Row, table, write_json
from benchmarks.scheduling.statistics import Estimate
from benchmarks.scheduling.twin import patient
from benchmarks.scheduling.writing import goals
from clients.api import Call
from clients.load.arrivals import Planned
from clients.load.kinds import Kind
from clients.load.sending import Outcome
from clients.load.sending import run as send_load
from gateway.settings import Settings
from gateway.shell.assembly import policies
from scheduler.cost.profile import Profile, load
from scheduler.sim.bound import with_best_roles
from scheduler.sim.engine import simulate
from scheduler.sim.metrics import End, mean, quantile
from scheduler.sim.setup import Network, Scenario, ServerSetup
from scheduler.sim.suite import EXCLUSIVE_BYTES, PROFILES, fleet
from scheduler.sim.workload import Arrival, Phase, Workload

FASTER = 10.0
COMMAND = "python -m benchmarks.scheduling.live"
SERVERS = 8
SEED = 1
READY_SECONDS = 60.0
TIMED = re.compile(r"^(fixed_seconds|seconds_per_\w+|load_seconds)\s*=\s*([0-9.e-]+)", re.MULTILINE)
NETWORK = Network(control=0.001, latency=0.003)
"""Of this machine: what Python processes that share two cores add to loopback."""


@dataclass(frozen=True, slots=True)
class Figures:
    throughput: float
    """Requests per second, from the first arrival to the last picture."""
    mean: float
    p50: float
    p99: float
    succeeded: int


def fast_profile(folder: Path, faster: float = FASTER, memory_bytes: int = EXCLUSIVE_BYTES) -> Path:
    """Qwen-Image on an RTX 4090 of which so much is ours, so many times faster."""
    text = (PROFILES / "qwen-image-4090-offload.toml").read_text(encoding="utf-8")
    text = TIMED.sub(lambda found: f"{found[1]} = {float(found[2]) / faster:.9g}", text)
    text = text.replace('name = "Qwen-Image"', 'name = "Qwen-Image-fast"', 1)
    text = re.sub(r"^memory_gb = .*$", f"memory_gb = {memory_bytes // 10**9}", text, count=1, flags=re.MULTILINE)
    path = folder / "fast.toml"
    path.write_text(text, encoding="utf-8")
    return path


def scenario(profile: Profile, requests: int) -> Scenario:
    """Workload 2 as a trace of about so many requests."""
    servers = fleet(profile, SERVERS)
    mixes = [Phase(1.0, workloads.MIXES[name]) for name in workloads.SHIFTS["2 step shift"]]
    phases = [workloads.at(workloads.SHIFT_LOAD, servers, phase) for phase in mixes]
    seconds = requests / sum(phase.rate for phase in phases)
    workload = Workload(tuple(replace(phase, seconds=seconds) for phase in phases))
    placed = with_best_roles(servers, phases[0])
    whole = patient(Scenario("live", placed, workload, network=NETWORK))
    trace = tuple(
        Arrival(a.at, replace(a.kind, exact=True)) for a in whole.workload.arrivals(Random(f"{SEED}/arrivals"))
    )
    return replace(whole, workload=Workload(trace=trace))


def simulated(whole: Scenario, profile: Path) -> Figures:
    """With the policies that the gateway makes of the same settings."""
    settings = Settings.model_validate({"profiles": (profile,), "max_waiting_requests": 100_000})
    result = simulate(whole, policies(settings), SEED)
    took = [r.latency for r in result.requests if r.end is End.FINISHED]
    ended = max(r.ended for r in result.requests) - whole.workload.trace[0].at
    return _figures(took, ended)


def live(whole: Scenario, profile: Path, folder: Path) -> Figures:
    """Start everything, send the trace, stop everything."""
    port, control = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        environment = {"DISAGFUSION_PROFILES": f'["{profile}"]', "DISAGFUSION_MAX_WAITING_REQUESTS": "100000"}
        environment["DISAGFUSION_EMBEDDING_CACHE_BYTES"] = "0"  # the simulator knows no repeated prompts
        environment["DISAGFUSION_STATE_DIR"] = str(folder / "state")  # the user's own may hold keys
        arguments = ["gateway", "--port", str(port), "--control-bind", f"tcp://127.0.0.1:{control}"]
        stack.enter_context(_process(folder / "gateway.log", arguments, environment))
        for server in whole.servers:
            stack.enter_context(_stage_server(server, profile, control, folder))
        _await_ready(url, sum(len(server.roles) for server in whole.servers))
        outcomes = asyncio.run(send_load(f"{url}/v1", list(_plan(whole)), timeout_seconds=600.0))
    took = [outcome.seconds for outcome in outcomes if outcome.succeeded]
    return _figures(took, _duration(outcomes))


def _plan(whole: Scenario) -> Iterator[Planned]:
    first = whole.workload.trace[0].at
    for index, arrival in enumerate(whole.workload.trace):
        kind = arrival.kind
        body = {"prompt": "a red circle", "size": f"{kind.width}x{kind.height}", "num_inference_steps": kind.steps}
        call = Call(body | {"guidance_scale": 1.0, "seed": index})
        yield Planned(arrival.at - first, Kind(str(body["size"]), call))


def _stage_server(
    server: ServerSetup, profile: Path, control: int, folder: Path
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    arguments = ["stage_server", "--engine", "emulated", "--profile", str(profile), "--name", server.name]
    arguments += ["--role", ",".join(sorted(server.roles)), "--gateway", f"tcp://127.0.0.1:{control}"]
    return _process(folder / f"{server.name}.log", arguments, {})


@contextmanager
def _process(log: Path, arguments: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DISAGFUSION_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], env=inherited | environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(READY_SECONDS)


def _await_ready(url: str, holders: int) -> None:
    """Until so many roles are held, counted over all servers."""
    limit = time.monotonic() + READY_SECONDS
    while time.monotonic() < limit:
        try:
            models = httpx.get(f"{url}/readyz").json()["models"]
        except httpx.TransportError:
            models = {}
        if sum(sum(model["roles"].values()) for model in models.values()) >= holders:
            return
        time.sleep(0.2)  # nothing says when the last of several servers has joined
    raise RuntimeError(f"the stage servers did not join within {READY_SECONDS:g} s; their logs say why")


def _duration(outcomes: Sequence[Outcome]) -> float:
    return max(outcome.at + outcome.seconds for outcome in outcomes)


def _figures(took: Sequence[float], seconds: float) -> Figures:
    return Figures(len(took) / seconds, mean(took), quantile(took, 0.5), quantile(took, 0.99), len(took))


def report(real: Figures, twin: Figures, requests: int) -> Report:
    found = Report("The real gateway against the simulator")
    case = f"workload 2, ten times faster, {requests} requests, {SERVERS} stage servers"
    for name, ours, theirs in (
        ("throughput", real.throughput, twin.throughput),
        ("p99 latency", real.p99, twin.p99),
    ):
        off = abs(ours / theirs - 1)
        value = Estimate(off, off, off, 1)
        measure = f"{name}, real against simulated: difference"
        found.rows.append(Row(13, measure, case, value, "", Goal("<=", 0.05), engine="emulated", command=COMMAND))
    head = ["", "requests/s", "mean, s", "p50, s", "p99, s", "pictures"]
    body = [
        [name, *(f"{getattr(f, column):.3g}" for column in ("throughput", "mean", "p50", "p99")), str(f.succeeded)]
        for name, f in (("gateway and emulated stage servers", real), ("simulator", twin))
    ]
    found.text = [table(head, body)]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2100)
    parser.add_argument("--output", type=Path, help="folder to write live.md and rows of scheduling.json to")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="disagfusion-live-") as name:
        folder = Path(name)
        profile = fast_profile(folder)
        whole = scenario(load(profile), args.requests)
        count = len(whole.workload.trace)
        print(f"{count} requests, {whole.workload.seconds:.0f} s", file=sys.stderr)
        found = report(live(whole, profile, folder), simulated(whole, profile), count)
    print(goals(found.rows), *found.text, sep="\n\n")
    if args.output is not None:
        write_json(args.output / "scheduling.json", found.rows, "emulated")
        text = ["# The real gateway against the simulator", f"Written by `{COMMAND}`.", goals(found.rows), *found.text]
        (args.output / "live.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What the page's streams cost the gateway: its processor time without readers and with a hundred, in turns.

python -m benchmarks.page_streams [--streams 100] [--servers 8] [--rate 8] [--rounds 4] [--seconds 10]

The gateway is a process of its own, its stage servers too, with the emulated engine. Requests arrive at a steady rate
while both are measured, so that there is something to tell. The readers read all that they are told.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import httpx
import psutil

from benchmarks.gateway_processes import emulated, started
from benchmarks.ports import free_port

GOAL = 0.05
"""Of the gateway's processor time, for a hundred streams."""
BODY = {"prompt": "a red circle", "size": "1024x1024", "num_inference_steps": 8}
PROFILE, TIME_SCALE = "flux.1-dev-h100", 0.05
KEY = "benchmark-operator-key"
START_SECONDS = 120.0
BUFFER = 1 << 16


@dataclass(slots=True)
class Round:
    """One stretch of time."""

    processor: float
    """Seconds of processor time per second."""
    requests: int
    nbytes: int
    """That the readers got."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--servers", type=int, default=8, help="stage servers, at least three")
    parser.add_argument("--rate", type=float, default=20.0, help="requests per second")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a round, with and without readers")
    chosen = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        gateway, url = stack.enter_context(_fleet(folder, chosen.servers))
        found = asyncio.run(_measure(gateway, url, chosen))
    _print(found, chosen.streams)


async def _measure(gateway: psutil.Process, url: str, chosen: argparse.Namespace) -> dict[int, list[Round]]:
    found: dict[int, list[Round]] = {0: [], chosen.streams: []}
    async with httpx.AsyncClient(base_url=url, timeout=START_SECONDS) as client:
        await _ready(client)
        await _round(gateway, client, chosen, 0)  # the first one warms up
        for _ in range(chosen.rounds):
            for streams, rounds in found.items():
                rounds.append(await _round(gateway, client, chosen, streams))
    return found


async def _round(gateway: psutil.Process, client: httpx.AsyncClient, chosen: argparse.Namespace, streams: int) -> Round:
    clock = asyncio.get_running_loop().time
    async with _readers(client, streams) as told, asyncio.TaskGroup() as tasks:
        before, began, requests = gateway.cpu_times(), clock(), 0
        while clock() < began + chosen.seconds:
            tasks.create_task(_ask(client))
            requests += 1
            await asyncio.sleep(max(0.0, began + requests / chosen.rate - clock()))
        after, seconds = gateway.cpu_times(), clock() - began
        nbytes = sum(told)
    spent = after.user + after.system - before.user - before.system
    return Round(spent / seconds, requests, nbytes)


async def _ask(client: httpx.AsyncClient) -> None:
    (await client.post("/v1/images/generations", json=BODY)).raise_for_status()


@asynccontextmanager
async def _readers(client: httpx.AsyncClient, count: int) -> AsyncIterator[list[int]]:
    """So many streams, each past its first state; what each has got since, in bytes."""
    told = [0] * count
    complete = [asyncio.Event() for _ in range(count)]

    async def read(index: int) -> None:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        head = f"GET /admin/pipeline HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\n\r\n"
        writer.write(head.encode())
        try:
            while words := await reader.read(BUFFER):
                if b'"complete"' in words:
                    complete[index].set()
                    told[index] = 0
                told[index] += len(words)
        finally:
            writer.close()

    tasks = [asyncio.create_task(read(index)) for index in range(count)]
    async with asyncio.timeout(START_SECONDS):
        for each in complete:
            await each.wait()
    yield told
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(START_SECONDS):
        while True:
            try:
                if (await client.get("/readyz")).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.2)


def _print(found: dict[int, list[Round]], streams: int) -> None:
    print("emulated stages; processor time of the gateway, in the mean over rounds that took turns")
    for count, rounds in found.items():
        rate = sum(each.requests for each in rounds) / len(rounds)
        share = mean(each.processor for each in rounds)
        kilobytes = mean(each.nbytes for each in rounds) / 1e3 / max(1, count)
        told = f", {kilobytes:.1f} kB told to each" if count else ""
        print(f"{count:4} streams: {100 * share:5.1f} % of a processor, {rate:.0f} requests a round{told}")
    without, with_streams = (mean(each.processor for each in rounds) for rounds in found.values())
    cost = with_streams - without
    print(
        f"{streams} streams cost {100 * cost:.1f} % of a processor, "
        f"{100 * cost / with_streams:.1f} % of the gateway's processor time at this load (goal: {100 * GOAL:g} %)"
    )


@contextmanager
def _fleet(folder: Path, servers: int) -> Iterator[tuple[psutil.Process, str]]:
    """The gateway's process and url; its stage servers hold a role each, most of them the dit."""
    port, control = free_port(), f"tcp://127.0.0.1:{free_port()}"
    environment = {"DISAGFUSION_STATE_DIR": str(folder / "state"), "DISAGFUSION_ADMIN_KEY": KEY}
    command = [sys.executable, "-m", "gateway", "--port", str(port), "--control-bind", control]
    engine = ["--profile", PROFILE, "--time-scale", str(TIME_SCALE)]
    with ExitStack() as stack:
        gateway = stack.enter_context(started([*command, "--log-level", "warning"], environment))
        for index, role in enumerate(["encoder", "decoder", *["dit"] * (servers - 2)]):
            stack.enter_context(emulated(control, f"{role}-{index}", role, engine))
        yield gateway, f"http://127.0.0.1:{port}"


if __name__ == "__main__":
    main()

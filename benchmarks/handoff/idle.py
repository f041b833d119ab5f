"""Row 1: how long the dit's device has nothing to do while work waits and hand-offs are delayed; synchronous beside it.

FLUX.1 [dev] in four steps at 1024², emulated on an H100's stage times. Every encoding is ready before the first dit
job, so work always waits. Between the two servers stands a proxy that delays whatever passes by 20 ± 10 ms each way.
Idle is the share of the time from the first start to the last end in which no job computed.

python -m benchmarks.handoff.idle
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from benchmarks.handoff.driver import Driver, servers
from benchmarks.ports import free_port
from benchmarks.rows import Goal, Row, show
from wire.params import ImageParams
from wire.to_gateway import StageDone, Started
from wire.to_stage import InputRef
from wire.types import Epoch, Role

JOBS = 20
DELAY_SECONDS, SPREAD_SECONDS = 0.020, 0.010
SEED = 1
MOST = 0.01
COMMAND = "python -m benchmarks.handoff.idle"
PARAMS = ImageParams(prompt="a red circle", width=1024, height=1024, num_inference_steps=4)
ENGINE = ["--engine", "emulated", "--profile", "flux.1-dev-h100"]


def rows(jobs: int = JOBS) -> list[Row]:
    return [
        _row("inputs fetched ahead", _idle(jobs, prefetch=1), Goal("<=", MOST)),
        _row("synchronous (--prefetch 0)", _idle(jobs, prefetch=0), None),
    ]


def _idle(jobs: int, prefetch: int) -> float:
    driver, port = Driver(), free_port()
    data = free_port()
    options = {
        # The encoder is read through the proxy, and made faster, as it is not what is measured.
        "encoder": ["--role", "encoder", *ENGINE, "--time-scale", "0.01", "--data-bind", f"tcp://127.0.0.1:{data}",
                    "--data-advertise", f"tcp://127.0.0.1:{port}"],
        "dit": ["--role", "dit", *ENGINE, "--prefetch", str(prefetch)],
    }  # fmt: skip
    try:
        with _proxy(port, data), servers(driver, options):
            encoded = []
            for _ in range(jobs):
                _, done = driver.expect(StageDone, driver.run("encoder", Role.ENCODER, PARAMS))
                encoded.append(driver.inputs("encoder", done, Role.DIT))
            return _denoised(driver, encoded, prefetch)
    finally:
        driver.close()


def _denoised(driver: Driver, encoded: list[tuple[InputRef, ...]], prefetch: int) -> float:
    waiting, here = deque(encoded), deque[Epoch]()
    first, last, computed = 0.0, 0.0, 0.0
    while waiting or here:
        while waiting and len(here) <= prefetch:
            here.append(driver.run("dit", Role.DIT, PARAMS, *waiting.popleft()))
        began, _ = driver.expect(Started, here[0])
        last, done = driver.expect(StageDone, here.popleft())
        first = first or began
        computed += done.timings.compute
        driver.release("dit", done)
    return 1 - computed / (last - first)


@contextmanager
def _proxy(port: int, target: int) -> Iterator[None]:
    """From ``port`` to ``target`` of this machine, in a thread of its own."""
    loop, stopped, up = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

    async def serve() -> None:
        async with await asyncio.start_server(partial(_relay, target, random.Random(SEED)), "127.0.0.1", port):
            up.set()
            await stopped.wait()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert up.wait(10), "the proxy does not start"
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(10)


async def _relay(
    target: int, chance: random.Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    there, back = await asyncio.open_connection("127.0.0.1", target)
    with suppress(asyncio.CancelledError):
        await asyncio.gather(_pump(reader, back, chance), _pump(there, writer, chance))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random) -> None:
    """Whatever comes together leaves together, in its order, later by a delay of its own."""
    loop = asyncio.get_running_loop()
    passing: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    leaving = asyncio.create_task(_let_go(passing, writer))
    with suppress(ConnectionError):
        while data := await reader.read(1 << 20):
            delay = DELAY_SECONDS + chance.uniform(-SPREAD_SECONDS, SPREAD_SECONDS)
            passing.put_nowait((loop.time() + delay, data))
    passing.put_nowait((loop.time(), b""))
    await leaving


async def _let_go(passing: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due, data = await passing.get()
        await asyncio.sleep(max(0.0, due - loop.time()))
        if not data or writer.is_closing():
            writer.close()
            return
        writer.write(data)


def _row(case: str, value: float, goal: Goal | None) -> Row:
    measure = "dit idle while work waits, FLUX 4 steps 1024², delayed 20 ± 10 ms each way, without a gateway"
    return Row(
        1,
        measure,
        case,
        value,
        "of the time",
        goal,
        "emulated",
        COMMAND,
        (SEED,),
    )


def main() -> None:
    show(rows())


if __name__ == "__main__":
    main()

"""What a relay costs beside a direct connection: bundles over loopback, in turns, each party a process of its own.

python -m benchmarks.relay
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import statistics
import time
from multiprocessing.connection import Connection

import numpy as np

from stage_server.data.frames import keep_frames
from stage_server.data.holder import Holder
from stage_server.data.loop_thread import LoopThread
from stage_server.data.paths import PathConsumer, Pathfinder
from stage_server.data.relayed import Relayed
from stage_server.relay.relay import Relay
from wire.bundle import Bundle, pack
from wire.doors import Doors
from wire.to_stage import InputRef
from wire.types import Handle, ServerId
from wire.values import Tensor

SIZES = (1 << 17, 1 << 20, 5 << 20, 32 << 20)
ROUNDS = 15
DEADLINE_SECONDS = 30.0


def main() -> None:
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for work in (_relay, _hold):
        here, there = context.Pipe()
        pipes.append(here)
        processes.append(context.Process(target=work, args=(there,), daemon=True))
        processes[-1].start()
    pipes[1].send(pipes[0].recv())
    direct, behind = pipes[1].recv()
    keep_frames()
    doors = LoopThread("doors")
    consumer = PathConsumer(Pathfinder(None, Doors(doors.loop)), keys=None)
    print(f"fetches over loopback, three processes, direct and through a relay in turns, median of {ROUNDS}")
    for size in SIZES:
        refs = {
            "direct": InputRef(handle=_handle(size), endpoint=direct),
            "through a relay": InputRef(
                handle=_handle(size), endpoint="tcp://127.0.0.1:1", relays=(behind,), server=ServerId("h/1")
            ),
        }
        _report(size, consumer, refs)
    consumer.close()
    doors.close()
    for process in processes:
        process.terminate()


def _report(size: int, consumer: PathConsumer, refs: dict[str, InputRef]) -> None:
    times: dict[str, list[float]] = {name: [] for name in refs}
    for number in range(ROUNDS + 1):
        for name, ref in refs.items():
            start = time.perf_counter()
            consumer.fetch(ref, DEADLINE_SECONDS).result()
            if number:  # the first one connects
                times[name].append(time.perf_counter() - start)
    for name, took in times.items():
        median = statistics.median(took)
        print(f"  {size / 2**20:6g} MB {name:16} {median * 1e3:8.2f} ms {size / median / 1e6:7.0f} MB/s")


def _relay(pipe: Connection) -> None:
    async def run() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        pipe.send(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        await Relay(listener).run()

    asyncio.run(run())


def _hold(pipe: Connection) -> None:
    holder = Holder("tcp://127.0.0.1:*", {_handle(size): _bundle(size) for size in SIZES}.get, identity="h/1")
    relayed = Relayed(pipe.recv(), holder.endpoint, LoopThread("relayed"))
    pipe.send((holder.endpoint, relayed.endpoint))
    pipe.recv()


def _handle(size: int) -> Handle:
    return Handle(f"{size:032x}")


def _bundle(size: int) -> Bundle:
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    return pack({"latents": Tensor("bfloat16", (1, size // 2), data.data)})


if __name__ == "__main__":
    main()

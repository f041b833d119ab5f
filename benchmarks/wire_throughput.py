"""What crossing a process boundary costs on this machine: bundles over loopback TCP, and control messages.

python -m benchmarks.wire_throughput
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import numpy as np
import zmq

from stage_server.data.consumer import Consumer
from stage_server.data.holder import Holder
from stage_server.data.pool import pageable
from wire.bundle import Bundle, pack, unpack
from wire.control_codec import decode_to_gateway, decode_to_stage, encode
from wire.params import ImageParams
from wire.to_gateway import Progress
from wire.to_stage import InputRef, Member, Run
from wire.transfer import CHUNK_BYTES
from wire.types import Epoch, Handle, Role
from wire.values import Tensor

SIZES = (1 << 19, 5 << 20, 32 << 20)
ROUNDS = 15
CODEC_ROUNDS = 5_000
DEADLINE_SECONDS = 30.0
EPOCH = Epoch("g" * 16, 12345)


def main() -> None:
    parent, child = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    holder = context.Process(target=_hold, args=(child,), daemon=True)
    holder.start()
    endpoint, naive_endpoint = parent.recv()
    print(f"fetch over loopback, two processes, {CHUNK_BYTES >> 20} MB chunks with checksums, median of {ROUNDS}")
    for size in SIZES:
        ref = InputRef(handle=_handle(size), endpoint=endpoint)
        _report(f"{size / 2**20:g} MB bundle", size, _fetching(Consumer(), ref))
        _report(f"{size / 2**20:g} MB bundle, fresh memory", size, _fetching(Consumer(allocate=_fresh), ref))
    _report("naive: one 32 MB frame, copied", SIZES[-1], _naive(naive_endpoint))
    parent.close()
    holder.join(DEADLINE_SECONDS)
    _report_codec()


def _hold(pipe: Connection) -> None:
    """The other process: a holder, and a socket that sends everything in one frame."""
    bundles = {_handle(size): _bundle(size) for size in SIZES}
    holder = Holder("tcp://127.0.0.1:*", bundles.get)
    reply: zmq.Socket[bytes] = zmq.Context().socket(zmq.REP)
    reply.bind("tcp://127.0.0.1:*")
    pipe.send((holder.endpoint, reply.getsockopt_string(zmq.LAST_ENDPOINT)))
    largest = bytes(_bundle(SIZES[-1]).view(0, SIZES[-1]))
    poller = zmq.Poller()
    poller.register(reply, zmq.POLLIN)
    poller.register(pipe, zmq.POLLIN)
    while pipe.fileno() not in dict(poller.poll()):
        reply.recv()
        reply.send(largest)
    holder.close()


def _fetching(consumer: Consumer, ref: InputRef) -> Callable[[], object]:
    return lambda: consumer.fetch(ref, DEADLINE_SECONDS).result()


def _fresh(nbytes: int) -> memoryview:
    return pageable(nbytes).data


def _handle(size: int) -> Handle:
    return Handle(f"{size:032x}")


def _bundle(size: int) -> Bundle:
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    return pack({"prompt_embeds": Tensor("bfloat16", (1, size // 2), data.data), "height": 1024})


def _naive(endpoint: str) -> Callable[[], object]:
    request: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
    request.connect(endpoint)

    def once() -> object:
        request.send(b"")
        return request.recv()

    return once


def _report(name: str, size: int, once: Callable[[], object]) -> None:
    once()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        once()
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    print(
        f"  {name:34} {median * 1e3:7.2f} ms {size / median / 1e6:7.0f} MB/s   best {size / min(times) / 1e6:.0f} MB/s"
    )


def _report_codec() -> None:
    refs = tuple(InputRef(handle=_handle(n), endpoint="tcp://10.0.0.7:5601", nbytes=n) for n in range(3))
    member = Member(epoch=EPOCH, params=ImageParams(prompt="a red circle " * 8, height=1024, width=1024), inputs=refs)
    run = Run(role=Role.DIT, members=(member,), remaining_seconds=60.0)
    progress = Progress(epoch=EPOCH, step=3, steps=28, step_seconds=0.1)
    bundle = _bundle(SIZES[0])
    calls: dict[str, Callable[[], object]] = {
        f"encode Run ({len(encode(run))} bytes)": partial(encode, run),
        "decode Run": partial(decode_to_stage, encode(run)),
        f"encode Progress ({len(encode(progress))} bytes)": partial(encode, progress),
        "decode Progress": partial(decode_to_gateway, encode(progress)),
        "unpack a bundle of one tensor": partial(unpack, bundle),
    }
    print(f"codec, mean of {CODEC_ROUNDS}")
    for name, call in calls.items():
        start = time.perf_counter()
        for _ in range(CODEC_ROUNDS):
            call()
        print(f"  {name:34} {(time.perf_counter() - start) / CODEC_ROUNDS * 1e6:7.2f} µs")


if __name__ == "__main__":
    main()

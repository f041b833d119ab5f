"""Row 4: bundles from a stage server's holder to another's consumer, beside the best that plain pyzmq does.

Plain pyzmq is the same two processes, sockets and window, with one thread each: a DEALER asks for chunks, a ROUTER
sends them from where they lie, and they go to a buffer that is used again. No protocol, no checksum, nobody who
waits for anything else. Of several chunk sizes the best counts. All take turns. The process that receives keeps its
memory as a stage server does (``stage_server.data.frames``), so plain pyzmq has the benefit of that as well.

python -m benchmarks.handoff.transfer
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from statistics import median

import numpy as np
import zmq

import wire.transfer
from benchmarks.handoff.driver import percentile
from benchmarks.rows import Goal, Row, show
from stage_server.data.consumer import Consumer
from stage_server.data.frames import keep_frames
from stage_server.data.holder import Holder
from wire.bundle import Bundle, pack
from wire.to_stage import InputRef
from wire.types import Handle
from wire.values import Tensor

SIZES = (1 << 19, 4 << 20, 32 << 20, 128 << 20)
ROUNDS = {1 << 19: 200, 4 << 20: 100, 32 << 20: 40, 128 << 20: 15}
CHUNKS = (1 << 19, 1 << 20, 4 << 20)
WINDOW = 8
DEADLINE_SECONDS = 60.0
COMMAND = "python -m benchmarks.handoff.transfer"
LEAST = {"with checksums": 0.75, "without checksums": 0.9}
STEADY = 0.6

Once = Callable[[], object]


def rows() -> list[Row]:
    found = []
    keep_frames()
    with ExitStack() as stack:
        ours = {case: stack.enter_context(_holder(checked=case == "with checksums")) for case in LEAST}
        endpoint = stack.enter_context(_started(_plain_holder))
        plain = stack.enter_context(_plain_socket(endpoint))
        consumer = Consumer()
        stack.callback(consumer.close)
        for size in SIZES:
            ways: dict[str, Once] = {
                case: _fetching(consumer, at, size, checked=case == "with checksums") for case, at in ours.items()
            }
            ways |= {f"plain, {chunk >> 10} KB": _pulling(plain, size, chunk) for chunk in CHUNKS}
            found += _rows(size, _rates(ways, size))
    return found


def _rows(size: int, rates: dict[str, list[float]]) -> list[Row]:
    best = max(median(found) for case, found in rates.items() if case not in LEAST)
    made = [_row(f"{size / 2**20:g} MB", "plain pyzmq's best, median", best / 1e9, "GB/s")]
    for case, least in LEAST.items():
        usual = median(rates[case])
        name = f"{size / 2**20:g} MB {case}"
        made.append(_row(name, "median bandwidth over plain pyzmq's best", usual / best, "×", Goal(">=", least)))
        steady = percentile(rates[case], 0.1) / usual
        made.append(_row(name, "p10 of the bandwidth over its median", steady, "×", Goal(">=", STEADY)))
    return made


def _rates(ways: dict[str, Once], size: int) -> dict[str, list[float]]:
    """Bytes per second of each transfer."""
    rates: dict[str, list[float]] = {case: [] for case in ways}
    for once in ways.values():
        once()
    for _ in range(ROUNDS[size]):
        for case, once in ways.items():
            began = time.perf_counter()
            once()
            rates[case].append(size / (time.perf_counter() - began))
    return rates


# --- ours ---


def _fetching(consumer: Consumer, endpoint: str, size: int, *, checked: bool) -> Once:
    ref = InputRef(handle=_handle(size), endpoint=endpoint, nbytes=size)
    digest = wire.transfer.xxhash if checked else _NoDigest

    def once() -> None:
        wire.transfer.xxhash, kept = digest, wire.transfer.xxhash  # type: ignore[assignment]
        try:
            consumer.fetch(ref, DEADLINE_SECONDS).result()
        finally:
            wire.transfer.xxhash = kept

    return once


class _NoDigest:
    """In the place of ``xxhash``: the protocol has checksums always, so here they cost nothing."""

    @staticmethod
    def xxh3_64_intdigest(_data: object) -> int:
        return 0


@contextmanager
def _holder(*, checked: bool) -> Iterator[str]:
    with _started(_checked_holder if checked else _unchecked_holder) as endpoint:
        yield endpoint


def _checked_holder(pipe: Connection) -> None:
    bundles = {_handle(size): _bundle(size) for size in SIZES}
    holder = Holder("tcp://127.0.0.1:*", bundles.get)
    pipe.send(holder.endpoint)
    _wait(pipe)
    holder.close()


def _unchecked_holder(pipe: Connection) -> None:
    wire.transfer.xxhash = _NoDigest  # type: ignore[assignment]
    _checked_holder(pipe)


def _handle(size: int) -> Handle:
    return Handle(f"{size:032x}")


def _bundle(size: int) -> Bundle:
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    return pack({"prompt_embeds": Tensor("bfloat16", (1, size // 2), data.data)})


# --- plain pyzmq ---


def _plain_holder(pipe: Connection) -> None:
    payload = np.random.default_rng(0).integers(0, 256, SIZES[-1], np.uint8).data
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    pipe.send(f"tcp://127.0.0.1:{port}")
    poller = zmq.Poller()
    poller.register(router, zmq.POLLIN)
    poller.register(pipe, zmq.POLLIN)
    while pipe.fileno() not in dict(poller.poll()):
        peer, first, last = router.recv_multipart()
        router.send_multipart([peer, first, payload[int(first) : int(last)]], copy=False)
    context.destroy(linger=0)


@contextmanager
def _plain_socket(endpoint: str) -> Iterator[zmq.Socket[bytes]]:
    context = zmq.Context()
    dealer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    dealer.connect(endpoint)
    try:
        yield dealer
    finally:
        context.destroy(linger=0)


def _pulling(dealer: zmq.Socket[bytes], size: int, chunk: int) -> Once:
    buffer = memoryview(bytearray(size))

    def ask(first: int) -> None:
        dealer.send_multipart([str(first).encode(), str(min(first + chunk, size)).encode()])

    def once() -> None:
        starts = list(range(0, size, chunk))
        for first in starts[:WINDOW]:
            ask(first)
        for done in range(len(starts)):
            offset, body = dealer.recv_multipart(copy=False)
            first = int(offset.bytes)
            buffer[first : first + len(body.buffer)] = body.buffer
            if done + WINDOW < len(starts):
                ask(starts[done + WINDOW])

    return once


# --- processes ---


@contextmanager
def _started(target: Callable[[Connection], None]) -> Iterator[str]:
    """A process that serves until the block ends, and its endpoint."""
    parent, child = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(child,), daemon=True)
    process.start()
    try:
        yield parent.recv()
    finally:
        parent.close()
        child.close()
        process.join(10)
        process.kill()


def _wait(pipe: Connection) -> None:
    try:
        pipe.recv()
    except EOFError:
        return


def _row(case: str, measure: str, value: float, unit: str, goal: Goal | None = None) -> Row:
    return Row(4, measure, case, value, unit, goal, "none", COMMAND, ())


def main() -> None:
    show(rows())


if __name__ == "__main__":
    main()

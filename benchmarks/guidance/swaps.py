"""What swapping one half per step takes: two processes' worth of sockets, the tensors of several models. Measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median
from time import perf_counter

import numpy as np

from stage_server.data.consumer import Consumer
from stage_server.data.exchange import Exchange
from stage_server.data.holder import Holder
from stage_server.data.mailbox import Mailbox
from wire.to_stage import Half, InputRef
from wire.types import Handle
from wire.values import Tensor

SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "tiny-shapes, 256²": ("float32", (16, 1, 32, 32)),
    "Stable Diffusion 3, 1024²": ("float16", (1, 16, 128, 128)),
    "Qwen-Image, 1024²": ("bfloat16", (1, 4096, 64)),
    "Wan 2.2, 832 × 480, 81 frames": ("bfloat16", (1, 16, 21, 60, 104)),
}
SWAPS = 200
PATIENCE = 30.0
HEAD = ("what is swapped", "bytes", "median", "p99")


def rows() -> Iterator[tuple[str, ...]]:
    for name, (dtype, shape) in SHAPES.items():
        size = (4 if dtype == "float32" else 2) * int(np.prod(shape))
        took = _seconds(Tensor(dtype, shape, memoryview(np.zeros(size, np.uint8))))
        tail = sorted(took)[round(0.99 * (len(took) - 1))]
        yield name, f"{size:,}", f"{1e3 * median(took):.2f} ms", f"{1e3 * tail:.2f} ms"


def _seconds(half: Tensor) -> list[float]:
    """Of each swap, from the moment at which the one that leads has its half."""
    with _pair() as (leads, helps), ThreadPoolExecutor(1) as pool:
        other = pool.submit(_swap, helps, half)
        took = _swap(leads, half)
        other.result(PATIENCE)
    return took[SWAPS // 10 :]  # until connections are open and buffers mapped


def _swap(one: Exchange, half: Tensor) -> list[float]:
    took = []
    for step in range(1, SWAPS + 1):
        began = perf_counter()
        one.give(step, {"half": half})
        if one.take(step, PATIENCE) is None:
            raise SystemExit(f"swap {step} did not come within {PATIENCE:g} s")
        took.append(perf_counter() - began)
    return took


@contextmanager
def _pair() -> Iterator[Sequence[Exchange]]:
    mailboxes = [Mailbox() for _ in range(2)]
    holders = [Holder("tcp://127.0.0.1:*", mailbox.get) for mailbox in mailboxes]
    consumers = [Consumer(local=mailbox.get) for mailbox in mailboxes]
    handles = [Handle("ab" * 16), Handle("cd" * 16)]
    try:
        pair = []
        for own, other in ((0, 1), (1, 0)):
            mailboxes[own].on_put = holders[own].look_again
            partner = InputRef(handle=handles[other], endpoint=holders[other].endpoint)
            pair.append(
                Exchange(Half(handle=handles[own], partner=partner, leads=own == 0), mailboxes[own], consumers[own])
            )
        yield pair
    finally:
        for each in (*consumers, *holders):
            each.close()

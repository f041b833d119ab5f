from __future__ import annotations

import numpy as np
import pytest
import torch

from stage_server.data.pool import SMALLEST, BufferPool, pageable


@pytest.fixture
def made() -> list[int]:
    return []


@pytest.fixture
def pool(made) -> BufferPool:
    def make(nbytes):
        made.append(nbytes)
        return pageable(nbytes)

    return BufferPool(make, idle_bytes=2 * SMALLEST)


@pytest.mark.parametrize("nbytes", [0, 1, 63, SMALLEST, SMALLEST + 1, 10**6])
def test_buffers_are_exact_aligned_and_writable(nbytes):
    buffer = BufferPool()(nbytes)
    assert (buffer.nbytes, buffer.readonly, buffer.format) == (nbytes, False, "B")
    assert np.frombuffer(buffer, np.uint8).ctypes.data % 64 == 0


@pytest.mark.parametrize(
    "derive",
    [
        lambda buffer: buffer[5:10],
        lambda buffer: buffer.cast("f"),
        lambda buffer: np.frombuffer(buffer, np.float32)[3:].reshape(1, -1)[:, 1:],
        lambda buffer: np.asarray(buffer)[2:4],
        lambda buffer: torch.frombuffer(buffer, dtype=torch.float32)[1:].view(torch.int32),
    ],
)
def test_a_buffer_is_used_again_only_when_nothing_made_from_it_is_left(pool, made, derive):
    derived = derive(pool(400))
    other = pool(400)
    assert made == [SMALLEST, SMALLEST]
    del derived
    again = pool(300)
    assert made == [SMALLEST, SMALLEST]
    del other, again


def test_idle_buffers_are_bounded(pool, made):
    buffers = [pool(1) for _ in range(5)]
    large = pool(3 * SMALLEST)
    del buffers, large
    kept = [pool(1) for _ in range(5)]
    pool(3 * SMALLEST)
    assert made == [SMALLEST] * 5 + [4 * SMALLEST] + [SMALLEST] * 3 + [4 * SMALLEST]
    assert len(kept) == 5

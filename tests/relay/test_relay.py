"""Holders and consumers over a real relay, and each against a peer that misbehaves."""

from __future__ import annotations

import numpy as np
import pytest

from wire.bundle import Bundle, pack, unpack
from wire.errors import InputLost
from wire.to_stage import InputRef
from wire.transfer import CHUNK_BYTES
from wire.types import Handle
from wire.values import Tensor

WAIT = 20.0
HANDLE = Handle("ab" * 16)


def bundle(nbytes: int, seed: int = 0) -> Bundle:
    data = np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)
    return pack({"latents": Tensor("uint8", (nbytes,), data.data), "seed": seed})


def at(holder, handle=HANDLE, **options) -> InputRef:
    return InputRef(handle=handle, endpoint=holder.endpoint, **options)


def lost(future) -> InputLost:
    error = future.exception(WAIT)
    assert isinstance(error, InputLost)
    return error


@pytest.mark.parametrize("nbytes", [0, 1, CHUNK_BYTES, 40 * CHUNK_BYTES + 5])
def test_what_arrives_is_what_was_packed(relaying, behind, consuming, nbytes):
    sent = bundle(nbytes)
    received = consuming().fetch(at(behind(relaying(), {HANDLE: sent}.get)), WAIT).result(WAIT)
    assert unpack(received) == unpack(sent)

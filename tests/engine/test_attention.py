"""Attention backends: the choice by measuring, and that it stays with its own model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from stage_server.engine import attention
from stage_server.engine.attention import Shape, fastest
from stage_server.engine.base import LoadError
from stage_server.engine.diffusers_engine import DiffusersEngine
from wire.types import Role

SHAPE = Shape(heads=2, width=8, tokens=600)
CPU = torch.device("cpu")


class Backends:
    """What ``dispatch_attention_fn`` is replaced by, and a clock that it moves: a call takes what its backend takes."""

    def __init__(self, **seconds: float) -> None:
        self.now = 0.0
        self.seconds = {"native": 1.0, **seconds}
        self.masked: Callable[[str, torch.Tensor], torch.Tensor] = lambda _name, result: result

    def __call__(self, query: torch.Tensor, *_: Any, attn_mask: Any, backend: AttentionBackendName) -> torch.Tensor:
        if backend.value not in self.seconds:
            raise RuntimeError("its package is missing")
        self.now += self.seconds[backend.value]
        return query if attn_mask is None else self.masked(backend.value, query)


def chosen(backends: Backends, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(attention, "dispatch_attention_fn", backends)
    return fastest(SHAPE, CPU, torch.float32, lambda: backends.now)


def test_the_fastest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(Backends(flash=0.5, xformers=0.7), monkeypatch) == "flash"


def test_what_is_hardly_faster_is_not_worth_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(Backends(flash=0.95), monkeypatch) == "native"


def test_what_takes_no_mask_or_reads_it_otherwise_is_none_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    backends = Backends(flash=0.5, xformers=0.6, _native_cudnn=0.7)

    def masked(name: str, result: torch.Tensor) -> torch.Tensor:
        if name == "flash":
            raise ValueError("attn_mask is not supported")
        return result * (2.0 if name == "xformers" else 1.0)

    backends.masked = masked
    assert chosen(backends, monkeypatch) == "_native_cudnn"


def test_what_would_be_downloaded_rounds_to_eight_bits_or_takes_much_memory_is_not_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert chosen(Backends(flash_hub=0.1, sage=0.1, flash_varlen=0.1, flex=0.1), monkeypatch) == "native"


def test_the_real_ones_of_a_processor() -> None:
    assert fastest(SHAPE, CPU, torch.float32) in {"native", "_native_flash"}


def test_heads_are_read_from_the_configuration() -> None:
    assert Shape.of({"n_heads": 4, "dim": 192}, 256) == Shape(4, 48, 256 + attention.TEXT_TOKENS)
    assert Shape.of({"num_attention_heads": 24, "attention_head_dim": 128}, 4096) == Shape(24, 128, 4608)
    with pytest.raises(LoadError, match=r"auto cannot tell the heads of this denoiser .*; name a backend"):
        Shape.of({"attention_head_dim": [5, 10, 20]}, 256)


def test_auto_is_what_was_chosen_and_its_key_that_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Shape] = []
    monkeypatch.setattr(
        "stage_server.engine.diffusers_engine.fastest", lambda shape, *_: given.append(shape) or "_native_math"
    )
    engine = DiffusersEngine("tiny-shapes", attention_backend="auto")
    assert given == [Shape(4, 48, 64 + attention.TEXT_TOKENS)]
    assert engine.describe().attention == "_native_math"
    assert engine.describe().key == DiffusersEngine("tiny-shapes", attention_backend="_native_math").describe().key
    engine.set_roles(frozenset({Role.DIT}))
    processor = engine._pipeline.transformer.layers[0].attention.processor
    assert processor._attention_backend is AttentionBackendName._NATIVE_MATH
    assert _AttentionBackendRegistry._active_backend is AttentionBackendName.NATIVE

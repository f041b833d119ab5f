"""Compiled code: made in the background, held against the code as it is written, and for fast calls alone.

torch's own tracing runs; what writes machine code is replaced, so that no compiler is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from threading import Event
from typing import Any

import pytest
import torch
from torch import nn

from stage_server.engine import compiled
from stage_server.engine.base import LoadError, StageJob, Unwatched
from stage_server.engine.compiled import Compiler, distance, refuse_missing_compiler
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.joining import Arguments
from stage_server.engine.port import ForwardPort
from wire.params import ImageParams
from wire.types import Role
from wire.values import Tensor

PATIENCE = 300.0
Code = Callable[..., Any]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).relu()


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.block(x),)


class Backend:
    """Counts what it is asked to compile and how often that runs; gives ``shift`` more than it should."""

    def __init__(self, shift: float = 0.0, hold: Event | None = None) -> None:
        self.compiled = self.calls = 0
        self._shift = shift
        self._hold = hold

    def __call__(self, graph: Any, _inputs: Any) -> Code:
        self.compiled += 1
        if self._hold is not None:
            assert self._hold.wait(PATIENCE)

        def code(*args: Any) -> Any:
            self.calls += 1
            return [each + self._shift for each in graph.forward(*args)]

        return code


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    torch._dynamo.reset()


def taken(backend: Any) -> tuple[Compiler, Toy, ForwardPort]:
    compiler, module = Compiler(backend), Toy()
    compiler.take(module)
    return compiler, module, ForwardPort(compiled=compiler.instead)


def call(
    port: ForwardPort, module: nn.Module, *, rows: int = 2, fast: bool = True, adapters: Any = None
) -> torch.Tensor:
    with port.open(Unwatched(), fast=fast, adapters=adapters) as mine:
        (result,) = mine.call(module, "__call__", torch.ones(rows, 4))
    assert isinstance(result, torch.Tensor)
    return result


def test_a_call_is_computed_as_it_is_written_until_its_shapes_are_compiled() -> None:
    held = Event()
    backend = Backend(hold=held)
    compiler, module, port = taken(backend)
    expected = call(port, module, fast=False)
    assert torch.equal(call(port, module), expected)  # while it is compiled: nobody waits for that
    assert not compiler.wait_until_done(0)
    held.set()
    assert compiler.wait_until_done(PATIENCE)
    before = backend.calls
    assert torch.allclose(call(port, module), expected)
    assert backend.calls == before + 1


def test_calls_that_are_exact_or_adapted_are_never_compiled() -> None:
    backend = Backend()
    compiler, module, port = taken(backend)
    call(port, module)
    assert compiler.wait_until_done(PATIENCE)
    before = backend.calls
    call(port, module, fast=False)
    call(port, module, adapters=("a",))
    call(port, module, rows=3, fast=False)
    assert compiler.wait_until_done(0)
    assert backend.calls == before


def test_other_shapes_are_asked_for_once_and_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "MOST_SHAPES", 2)
    compiler, module, port = taken(Backend())
    for rows in (2, 3, 2, 3, 5):
        call(port, module, rows=rows)
        assert compiler.wait_until_done(PATIENCE)
    double = compiler.instead(module, Arguments((torch.ones(2, 4),), {}))
    assert double is not module
    assert double.block.layer is module.block.layer
    assert compiler.instead(module, Arguments((torch.ones(3, 4),), {})) is double
    assert compiler.instead(module, Arguments((torch.ones(5, 4),), {})) is module


@pytest.mark.parametrize("shift", [0.1, float("nan")])
def test_code_that_gives_something_else_is_not_used(caplog: pytest.LogCaptureFixture, shift: float) -> None:
    compiler, module, port = taken(Backend(shift))
    expected = call(port, module)
    with caplog.at_level(logging.WARNING):
        assert compiler.wait_until_done(PATIENCE)
    assert "Toy compiled is off by" in caplog.text
    assert torch.equal(call(port, module), expected)


def test_what_cannot_be_compiled_is_said_and_goes_on_as_it_is_written(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_graph: Any, _inputs: Any) -> Code:
        raise RuntimeError("no kernels here")

    compiler, module, port = taken(broken)
    with caplog.at_level(logging.WARNING):
        expected = call(port, module)
        assert compiler.wait_until_done(PATIENCE)
    assert "Toy is not compiled for these shapes" in caplog.text
    assert "no kernels here" in caplog.text
    assert torch.equal(call(port, module), expected)


def test_once_it_is_closed_nothing_is_begun() -> None:
    backend = Backend()
    compiler, module, port = taken(backend)
    compiler.close()
    call(port, module)
    assert compiler.wait_until_done(0)
    assert backend.compiled == 0


def test_what_a_job_does_to_its_arguments_later_is_not_compiled_for() -> None:
    held = Event()
    compiler, module, _ = taken(Backend(hold=held))
    given = torch.ones(2, 4)
    compiler.instead(module, Arguments((given,), {}))
    given.fill_(float("nan"))
    held.set()
    assert compiler.wait_until_done(PATIENCE)
    assert compiler.instead(module, Arguments((given,), {})) is not module


def test_results_are_as_far_apart_as_the_farthest_of_their_parts() -> None:
    one = {"a": torch.ones(4), "b": [torch.zeros(2)]}
    assert distance(one, one) == (0.0, 1e-3)
    assert distance({"a": torch.ones(4) * 1.5, "b": [torch.zeros(2)]}, one)[0] == pytest.approx(0.5)
    assert distance((torch.ones(2),), (torch.ones(3),))[0] == float("inf")
    assert distance((torch.ones(2, dtype=torch.bfloat16),), (torch.ones(2, dtype=torch.bfloat16),)) == (0.0, 0.05)


def test_a_missing_compiler_is_named_when_the_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    with pytest.raises(LoadError, match=r"--compile needs a C\+\+ compiler on a processor, .* apt-get install g\+\+"):
        DiffusersEngine("tiny-shapes", compiler=Compiler())
    DiffusersEngine("tiny-shapes", compiler=Compiler(), loads=False)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(LoadError, match="--compile needs the package triton on a CUDA device; pip install triton"):
        refuse_missing_compiler(torch.device("cuda"))


def test_fast_pictures_of_the_bundled_model_are_compiled_and_exact_ones_keep_their_bits(
    split_engines: Callable[[str], Mapping[Role, DiffusersEngine]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stage_server.engine.diffusers_engine.refuse_missing_compiler", lambda _device: None)
    params = ImageParams(prompt="a green star", width=64, height=64, num_inference_steps=2, guidance_scale=3.0, seed=1)
    inputs = split_engines("tiny-shapes")[Role.ENCODER].run(StageJob(Role.ENCODER, params), {}, Unwatched())[Role.DIT]
    backend = Backend(1e-6)
    compiler = Compiler(backend)
    engine = DiffusersEngine("tiny-shapes", compiler=compiler)
    engine.set_roles(frozenset({Role.DIT}))

    def latents(*, fast: bool) -> torch.Tensor:
        value = engine.run(StageJob(Role.DIT, params, fast=fast), inputs, Unwatched())[Role.DECODER]["latents"]
        assert isinstance(value, Tensor)
        return torch.frombuffer(bytearray(value.data), dtype=torch.float32)

    exact = latents(fast=False)
    latents(fast=True)
    assert compiler.wait_until_done(PATIENCE)
    before = backend.calls
    fast = latents(fast=True)
    assert backend.calls > before
    assert not torch.equal(fast, exact)
    assert (fast - exact).abs().max() < 1e-3
    before = backend.calls
    assert torch.equal(latents(fast=False), exact)
    assert backend.calls == before
    engine.close()

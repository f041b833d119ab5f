"""In which order inputs come and outputs leave, with a staging that only takes notes; the values are a real model's."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch

from stage_server.engine.base import StageJob, Unwatched
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.staging import HostStaging
from tests.engine.conftest import over_the_wire
from wire.params import ImageParams
from wire.types import REQUIRED, Role

Engines = Callable[[str], Mapping[Role, DiffusersEngine]]
PARAMS = ImageParams(prompt="a star", width=64, height=64, num_inference_steps=1, seed=4)


class Noted(HostStaging):
    """A device whose copies come to nothing until somebody waits for them."""

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes

    def arriving(self) -> Any:
        return _Copies(self._notes, "in")

    def leaving(self) -> Any:
        return _Copies(self._notes, "out")


class _Copies:
    def __init__(self, notes: list[str], way: str) -> None:
        self._notes, self._way = notes, way
        self._pending: list[tuple[torch.Tensor, torch.Tensor]] = []

    def _begin(self, tensor: torch.Tensor) -> torch.Tensor:
        copy = torch.full_like(tensor, 7)
        self._pending.append((copy, tensor))
        return copy

    to_device = to_host = _begin

    def computed(self) -> None:
        self._notes.append("computed")

    def landed(self) -> None:
        self._notes.append(f"{self._way} landed")
        for copy, tensor in self._pending:
            copy.copy_(tensor)


class Control(Unwatched):
    def __init__(self, notes: list[str]) -> None:
        self._notes = notes

    def computed(self, company: int) -> None:
        self._notes.append("called")

    def device_done(self) -> None:
        self._notes.append("device done")


def inputs_of(role: Role, engines: Mapping[Role, DiffusersEngine]) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for earlier, reader in pairwise(list(REQUIRED)[: list(REQUIRED).index(role) + 1]):
        made = engines[earlier].run(StageJob(earlier, PARAMS), inputs, Unwatched())
        inputs = {name: over_the_wire(value) for name, value in made[reader].items()}
    return inputs


@pytest.mark.parametrize("role", REQUIRED)
def test_the_host_waits_for_copies_before_and_after_the_device_is_had(
    role: Role, split_engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = split_engines("tiny-shapes")
    inputs = inputs_of(role, engines)
    job = StageJob(role, PARAMS)
    expected = engines[role].run(job, inputs, Unwatched())
    notes: list[str] = []
    monkeypatch.setattr(engines[role], "_staging", Noted(notes))

    prepared = engines[role].prepare(job, inputs)
    assert notes == ["in landed"]
    outputs = prepared(Control(notes))

    assert [note for note in notes if note != "called"] == ["in landed", "computed", "device done", "out landed"]
    assert notes.index("device done") > max(index for index, note in enumerate(notes) if note == "called")
    assert _bytes(outputs) == _bytes(expected)


@pytest.mark.parametrize("role", [Role.DIT, Role.DECODER])
def test_inputs_leave_the_device_before_the_outputs_are_published(
    role: Role, split_engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the garbage collector: a cycle would keep them until it comes."""
    engines = split_engines("tiny-shapes")
    inputs = inputs_of(role, engines)
    here: list[weakref.ref[torch.Tensor]] = []
    left: list[int] = []

    class Watched(HostStaging):
        def arriving(self) -> Any:
            return self

        def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
            copy = tensor.clone()
            here.append(weakref.ref(copy))
            return copy

        def landed(self) -> None:
            return

    class Counting(Unwatched):
        def device_done(self) -> None:
            left.append(sum(known() is not None for known in here))

    monkeypatch.setattr(engines[role], "_staging", Watched())
    prepared = engines[role].prepare(StageJob(role, PARAMS), inputs)
    gc.disable()
    try:
        prepared(Counting())
    finally:
        gc.enable()
    assert here
    assert left == [0]


def _bytes(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _bytes(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_bytes(item) for item in value]
    return bytes(value.data) if hasattr(value, "data") else value

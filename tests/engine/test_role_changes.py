"""A change of roles beside running jobs: who waits for whom, what is read ahead, and what a failure leaves."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from math import inf
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from PIL import Image

from stage_server.engine import default_dtype, giving_way, held_roles
from stage_server.engine.base import LoadError, StageJob, Unwatched
from stage_server.engine.default_dtype import guarded
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.giving_way import GivingWay
from stage_server.engine.stubs import ComponentStub
from wire.params import ImageParams
from wire.types import REQUIRED, Role

ENCODER, DIT, DECODER = (frozenset({role}) for role in REQUIRED)
PLENTY = 1 << 30
PARAMS = ImageParams(prompt="a star", width=64, height=64, num_inference_steps=2, guidance_scale=3.0)


@pytest.fixture
def copied(model_folder: Callable[[str], str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder("z-image"), tmp_path / "copy"))


class Turns:
    """Counts turns at the device, and lets them wait for a test."""

    def __init__(self) -> None:
        self.taken = 0
        self.free = Event()
        self.free.set()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        assert self.free.wait(10)
        self.taken += 1
        yield


class Control(Unwatched):
    """Of a job: calls back at each step."""

    def __init__(self, at_step: Callable[[int], None] = lambda _: None) -> None:
        self._at_step = at_step

    def step_done(self, step: int, steps: int) -> None:
        self._at_step(step)


def encoded(engine: DiffusersEngine) -> Mapping[str, Any]:
    return engine.run(StageJob(Role.ENCODER, PARAMS), {}, Unwatched())


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bytes(left.data) == bytes(right.data) if hasattr(left, "data") else bool(left == right)


def test_kept_roles_are_served_while_another_is_read(
    model_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, turns = DiffusersEngine(model_folder("z-image")), Turns()
    engine.set_roles(ENCODER)
    before = encoded(engine)
    reading, go_on = Event(), Event()
    read = engine._components._read
    monkeypatch.setattr(giving_way, "LEAST_SECONDS", inf)

    def slowly(*arguments: Any) -> Any:
        reading.set()
        assert go_on.wait(10)
        return read(*arguments)

    monkeypatch.setattr(engine._components, "_read", slowly)
    turns.free.clear()  # somebody computes
    change = Thread(target=engine.set_roles, args=(ENCODER | DIT, turns))
    change.start()
    assert reading.wait(10)
    assert same(encoded(engine), before)
    go_on.set()
    assert same(encoded(engine), before)
    assert (engine.roles, turns.taken) == (ENCODER, 0)
    assert isinstance(engine._pipeline.transformer, ComponentStub)
    turns.free.set()
    change.join(30)
    assert (engine.roles, turns.taken) == (ENCODER | DIT, 2)
    assert same(encoded(engine), before)


def test_a_role_that_stays_never_finds_nothing_in_place_of_what_goes(
    model_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit beside what comes is given up without a turn, and copying it to the host takes a while."""
    engine = DiffusersEngine(model_folder("stable-diffusion-3"), weight_cache_bytes=PLENTY)
    engine.set_roles(ENCODER | DIT)
    before = encoded(engine)
    monkeypatch.setattr(engine._held, "_room", lambda: 0)
    give_up, meanwhile = engine._components._give_up, list[Mapping[str, Any]]()

    def slowly(*arguments: Any, **options: Any) -> None:
        meanwhile.append(encoded(engine))
        give_up(*arguments, **options)

    monkeypatch.setattr(engine._components, "_give_up", slowly)
    engine.set_roles(ENCODER | DECODER)
    assert meanwhile
    assert all(same(each, before) for each in meanwhile)


def test_a_job_that_is_parked_during_a_change_draws_the_same(
    model_folder: Callable[[str], str], generate: Callable[..., Image.Image]
) -> None:
    engine = DiffusersEngine(model_folder("z-image"), weight_cache_bytes=PLENTY)
    engine.set_roles(frozenset(REQUIRED))
    inputs = encoded(engine)["dit"]
    job = StageJob(Role.DIT, PARAMS)
    alone = engine.run(job, inputs, Unwatched())

    def change(step: int) -> None:
        if step == 1:
            engine.set_roles(DIT)
            engine.set_roles(DIT | ENCODER)

    assert same(engine.run(job, inputs, Control(change)), alone)
    assert engine.roles == DIT | ENCODER


def test_each_role_is_warmed_up_in_a_turn_of_its_own_before_the_swap(
    model_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(giving_way, "LEAST_SECONDS", inf)
    engine, turns = DiffusersEngine(model_folder("z-image")), Turns()
    engine.set_roles(frozenset(REQUIRED), turns)
    assert turns.taken == len(REQUIRED) + 1


def test_jobs_of_roles_that_stay_run_between_two_layers_of_a_warm_up(
    model_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(giving_way, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(held_roles, "GivingWay", partial(GivingWay, clock=lambda: 0.0))
    engine, meanwhile = DiffusersEngine(model_folder("z-image")), list[Mapping[str, Any]]()
    engine.set_roles(ENCODER)
    before = encoded(engine)

    @contextmanager
    def turn() -> Iterator[None]:
        if len(meanwhile) < 12:
            meanwhile.append(encoded(engine))
        yield

    engine.set_roles(ENCODER | DIT, turn)
    assert len(meanwhile) == 12
    assert all(same(each, before) for each in meanwhile)
    alone = DiffusersEngine(model_folder("z-image"))
    alone.set_roles(ENCODER | DIT)
    job, inputs = StageJob(Role.DIT, PARAMS), before["dit"]
    assert same(engine.run(job, inputs, Unwatched()), alone.run(job, inputs, Unwatched()))


def test_a_role_read_ahead_is_warm_and_needs_no_files(copied: Path) -> None:
    engine = DiffusersEngine(str(copied), weight_cache_bytes=PLENTY)
    engine.set_roles(ENCODER)
    assert engine.warm == DECODER  # it shares the VAE with the encoder
    engine.preload(DIT)
    assert (engine.roles, engine.warm) == (ENCODER, DIT | DECODER)
    assert isinstance(engine._pipeline.transformer, ComponentStub)
    shutil.rmtree(copied / "transformer")
    engine.set_roles(DIT)
    assert (engine.roles, engine.warm) == (DIT, ENCODER | DECODER)


def test_what_is_read_ahead_keeps_within_its_bytes(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = DiffusersEngine(str(copied), weight_cache_bytes=1000)
    engine.set_roles(ENCODER)
    with caplog.at_level(logging.INFO):
        engine.preload(DIT)
    assert engine.warm == DECODER
    assert engine._components.cache.used == 0
    assert "transformer is not read ahead" in caplog.text


def test_reading_ahead_fails_without_consequences(copied: Path) -> None:
    engine = DiffusersEngine(str(copied), weight_cache_bytes=PLENTY)
    engine.set_roles(ENCODER)
    before = encoded(engine)
    shutil.rmtree(copied / "transformer")
    with pytest.raises(LoadError, match="transformer of copy cannot be loaded"):
        engine.preload(DIT)
    assert (engine.roles, engine.warm) == (ENCODER, DECODER)
    assert same(encoded(engine), before)


def test_where_both_do_not_fit_what_goes_is_dropped_first_and_said_so(
    copied: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = DiffusersEngine(str(copied), weight_cache_bytes=PLENTY)
    engine.set_roles(ENCODER | DECODER)
    monkeypatch.setattr(engine._held, "_room", lambda: 0)
    with caplog.at_level(logging.INFO):
        engine.set_roles(DIT | DECODER)
    assert "do not fit beside what goes" in caplog.text
    assert (engine.roles, engine.warm) == (DIT | DECODER, ENCODER)


def test_a_device_found_full_while_copying_drops_what_goes(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = DiffusersEngine(str(copied), weight_cache_bytes=PLENTY)
    engine.set_roles(ENCODER | DECODER)
    read = engine._components._read

    def full(name: str, *rest: Any) -> Any:
        if name == "transformer" and "text_encoder" in engine._components.resident:
            raise torch.OutOfMemoryError("no room")
        return read(name, *rest)

    monkeypatch.setattr(engine._components, "_read", full)
    engine.set_roles(DIT | DECODER)
    assert engine.roles == DIT | DECODER


@pytest.mark.parametrize("room", [0, PLENTY])
def test_a_role_that_cannot_run_leaves_the_former_ones(
    copied: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    engine = DiffusersEngine(str(copied), weight_cache_bytes=PLENTY)
    engine.set_roles(ENCODER | DECODER)
    before = encoded(engine)
    monkeypatch.setattr(engine._held, "_room", lambda: room)

    def fail(*_: object) -> None:
        raise LoadError("cannot run the role dit here")

    monkeypatch.setattr(engine._held, "_warm_up", fail)
    with pytest.raises(LoadError, match="cannot run the role dit"):
        engine.set_roles(DIT | DECODER)
    assert (engine.roles, engine.warm) == (ENCODER | DECODER, frozenset())
    assert isinstance(engine._pipeline.transformer, ComponentStub)
    assert same(encoded(engine), before)


def test_while_a_library_changes_the_default_dtype_the_device_is_taken() -> None:
    turns = Turns()
    seen: list[torch.dtype] = []
    with guarded(turns):
        torch.set_default_dtype(torch.float32)
        assert turns.taken == 0
        torch.set_default_dtype(torch.bfloat16)
        seen.append(torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        assert turns.taken == 1
        torch.set_default_dtype(torch.float16)  # and leaves it behind
    assert (seen, turns.taken, torch.get_default_dtype()) == ([torch.bfloat16], 2, torch.float32)


def test_two_threads_never_build_modules_at_once() -> None:
    order: list[str] = []

    def read() -> None:
        with guarded(nullcontext):
            order.append("the other")

    other = Thread(target=read)
    with guarded(nullcontext):
        other.start()
        assert default_dtype._reading.locked()
        order.append("this one")
    other.join(30.0)
    assert (order, default_dtype._reading.locked()) == (["this one", "the other"], False)


def test_loading_in_half_precision_takes_the_device_to_build_modules(copied: Path) -> None:
    engine, turns = DiffusersEngine(str(copied), dtype="bfloat16", weight_cache_bytes=PLENTY), Turns()
    engine.preload(DIT, turns)
    assert (turns.taken, torch.get_default_dtype()) == (1, torch.float32)
    half = DiffusersEngine(str(copied), weight_cache_bytes=PLENTY)
    half.preload(DIT, turns)
    assert turns.taken == 1

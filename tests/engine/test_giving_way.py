"""A turn at the device that is given back between two layers: for how long it is kept, and where it is given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from stage_server.engine.giving_way import LEAST_SECONDS, GivingWay


class World:
    """A device for which others make a turn wait, on a clock of its own."""

    def __init__(self, *waits: float) -> None:
        self.now = 0.0
        self.turns: list[tuple[float, float]] = []
        """When each began and ended."""
        self.queued = 0.0
        """Seconds of work that the device has been given and has yet to do."""
        self._waits = iter(waits)

    def clock(self) -> float:
        return self.now

    @contextmanager
    def turn(self) -> Iterator[None]:
        self.now += next(self._waits)
        began = self.now
        try:
            yield
        finally:
            self.turns.append((began, self.now))

    def computed(self) -> None:
        self.now += self.queued
        self.queued = 0.0

    def giving_way(self) -> GivingWay:
        return GivingWay(self.turn, self.computed, self.clock)

    def layers(self, *seconds: float) -> torch.nn.Sequential:
        return torch.nn.Sequential(*(Layer(self, each) for each in seconds))


class Layer(torch.nn.Module):
    def __init__(self, world: World, seconds: float) -> None:
        super().__init__()
        self._world = world
        self._seconds = seconds

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        self._world.now += self._seconds
        return given


def test_the_device_is_kept_for_as_long_as_it_was_waited_for() -> None:
    world = World(0.25, 1.0, 0.25)
    model = world.layers(0.125, 0.125, 0.5, 0.5, 0.125)
    with world.giving_way().in_calls_of([model]):
        model(torch.zeros(1))
    assert world.turns == [(0.25, 0.5), (1.5, 2.5), (2.75, 2.875)]


def test_a_short_job_has_one_turn_though_nobody_made_it_wait() -> None:
    world = World(0.0)
    model = world.layers(*[LEAST_SECONDS / 8] * 4)
    with world.giving_way().in_calls_of([model, object()]):
        model(torch.zeros(1))
    assert world.turns == [(0.0, LEAST_SECONDS / 2)]


def test_what_others_call_meanwhile_is_not_interrupted_and_nothing_is_once_it_is_over() -> None:
    world = World(0.0)
    own, common = world.layers(1.0), world.layers(1.0, 1.0)
    with world.giving_way().in_calls_of([own]):
        common(torch.zeros(1))
    own(torch.zeros(1))
    assert world.turns == [(0.0, 2.0)]


def test_nothing_that_the_device_has_yet_to_do_is_left_to_the_turns_of_others() -> None:
    world = World(0.0, 0.0)
    model = world.layers(LEAST_SECONDS, 0.0)
    model[0].register_forward_hook(lambda *_: setattr(world, "queued", 2.0))
    with world.giving_way().in_calls_of([model]):
        model(torch.zeros(1))
    assert world.turns[0] == (0.0, LEAST_SECONDS + 2.0)


def test_the_device_is_given_back_by_a_job_that_fails() -> None:
    world = World(0.0, 0.0)
    model = torch.nn.Sequential(*world.layers(1.0), torch.nn.Linear(2, 2))
    with pytest.raises(RuntimeError), world.giving_way().in_calls_of([model]):
        model(torch.zeros(1))
    assert [ended for _, ended in world.turns] == [1.0, 1.0]

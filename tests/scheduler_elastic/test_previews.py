"""Which intermediate pictures the finished one waits for."""

from __future__ import annotations

import pytest

from scheduler import events as ev
from scheduler.elastic import previews
from tests.scheduler.game import ALL, D, E, V
from tests.scheduler_elastic.play import Play
from wire.types import JobId, RequestId, Role


def is_kept(game: Play) -> bool:
    """Of what the denoising of "a" has shown."""
    game.fetched("a/d0")
    game.started("a/d0")
    game.shows("a/d0", 0)
    return game.scheduler.view.jobs[JobId("a/v0.preview.0")].is_kept


@pytest.mark.parametrize(("others", "kept"), [(0, True), (2, True), (20, False)])
def test_while_there_is_time_for_all(others: int, kept: bool) -> None:
    game = Play()
    game.serve("one", ALL)
    for name in ("a", *(f"other{number}" for number in range(others))):
        game.want(name, previews=3)
    game.through("a/e")
    assert is_kept(game) is kept


@pytest.mark.parametrize(("decoder", "kept"), [({V}, True), ({V, D}, False)])
def test_only_devices_that_decode_need_the_time(decoder: set[Role], kept: bool) -> None:
    """Twenty pictures ask a lot of the dit's device, and little of a decoder's."""
    game = Play()
    game.serve("encoder", {E})
    game.serve("decoder", decoder)
    game.serve("dit", {D}) if D not in decoder else None
    for name in ("a", *(f"other{number}" for number in range(20))):
        game.want(name, previews=3)
    game.through("a/e")
    assert is_kept(game) is kept


def test_what_was_asked_for_is_forgotten() -> None:
    game = Play()
    game.serve("one", ALL)
    for number in range(20):
        game.want(f"other{number}")
    for number in range(20):
        game.post(ev.RequestCancelled(RequestId(f"other{number}")))
    game.cancelled("other0/e")
    game.at(60)
    game.want("a", previews=1)
    game.through("a/e")
    assert is_kept(game)


def test_three_at_once_are_no_load_that_lasts_but_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previews, "MOST_WAITING", 0.0)
    game = Play()
    game.serve("one", ALL)
    for name in ("a", "b", "c"):
        game.want(name, previews=3)
    game.through("a/e")
    assert not is_kept(game)


@pytest.mark.parametrize(("asked", "kept"), [(3, True), (300, False)])
def test_light_load_is_not_enough_where_previews_take_more_time_than_there_is(asked: int, kept: bool) -> None:
    game = Play()
    game.serve("decoder", {V})
    for number in range(10):
        game.serve(f"encoder{number}", {E})
        for part in range(10):
            game.serve(f"dit{number}.{part}", {D})
    for name in ("a", *(f"other{number}" for number in range(20))):
        game.want(name, previews=asked)
    game.through("a/e")
    assert is_kept(game) is kept


@pytest.mark.parametrize(("spare", "kept"), [(0, False), (60, True)])
def test_load_is_that_of_the_busiest_stage(spare: int, kept: bool) -> None:
    """For a moment the decoder is asked for more than it can do, by previews; whether that lasts, other stages tell."""
    game = Play()
    game.serve("decoder", {V})
    game.serve("encoder", {E})
    for number in range(1 + spare):
        game.serve(f"dit{number}", {D})
    for name in ("a", *(f"other{number}" for number in range(8))):
        game.want(name, previews=20)
    game.through("a/e")
    assert is_kept(game) is kept

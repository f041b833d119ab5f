"""A job that came out with NaN: once more, on another server; and what the avoided one does meanwhile."""

from __future__ import annotations

from scheduler import events as ev
from scheduler.policy import Policies
from tests.scheduler.game import D, E, Game, V, failure, runs
from tests.scheduler_elastic.play import Play
from tests.simulation.schedules import Together
from wire.types import ServerId

NAN = "non_finite"


def halves(*dits: str, policies: Policies | None = None, limit: int = 100) -> Game:
    """An encoder and decoder server, and ``dits``."""
    game = Game(policies)
    game.join("rest", {E, V})
    for name in dits:
        game.join(name, {D}, limit, together=4)
    return game


def both_busy(game: Game) -> tuple[str, str]:
    """``r1`` and ``r2`` each on a server of its own; where they are."""
    for name in ("r1", "r2"):
        game.ask(name)
        game.through(f"{name}/e")
        game.fetched(f"{name}/d0")
        game.started(f"{name}/d0")
    assert game.where["r1/d0"] != game.where["r2/d0"]
    return game.where["r1/d0"], game.where["r2/d0"]


def test_nan_is_tried_once_more_on_another_server() -> None:
    game = halves("a", "b", "c")
    game.ask("r")
    game.through("r/e")
    first = game.where["r/d0"]
    assert len(runs(game.failed("r/d0", NAN))) == 1
    assert game.where["r/d0"] != first
    assert failure(game.failed("r/d0", NAN)) == ("r", NAN)


def test_the_other_server_makes_the_picture() -> None:
    game = halves("a", "b")
    game.ask("r")
    game.through("r/e")
    first = game.where["r/d0"]
    game.failed("r/d0", NAN)
    assert runs(game.through("r/d0")) == [("r/v0", "rest")]
    assert game.scheduler.view.jobs["r/d0"].holder != first


def test_the_only_server_of_a_role_gets_it_again() -> None:
    game = halves("a")
    game.ask("r")
    game.through("r/e")
    assert runs(game.failed("r/d0", NAN)) == [("r/d0", "a")]
    assert failure(game.failed("r/d0", NAN)) == ("r", NAN)


def test_an_error_of_another_kind_does_not_use_the_second_try_up() -> None:
    game = halves("a", "b")
    game.ask("r")
    game.through("r/e")
    game.failed("r/d0", NAN)
    assert failure(game.failed("r/d0")) is None
    assert failure(game.failed("r/d0", NAN)) == ("r", NAN)


def test_it_waits_for_the_other_server_and_the_idle_one_does_the_next() -> None:
    game = halves("a", "b", limit=1)
    bad, good = both_busy(game)
    game.ask("r3")
    game.through("r3/e")  # waits: no credit
    assert not runs(game.failed("r1/d0", NAN))
    assert runs(game.post(ev.LimitsRaised(ServerId(bad), {D: 2}))) == [("r3/d0", bad)]
    game.post(ev.LimitsRaised(ServerId(good), {D: 2}))
    assert ("r1/d0", good) in runs(game.done("r2/d0"))


def test_a_job_that_comes_while_the_best_one_avoids_the_idle_server_is_done_there() -> None:
    game = halves("a", "b", limit=1)
    bad, _ = both_busy(game)
    game.post(ev.LimitsRaised(ServerId(bad), {D: 5}))
    game.failed("r1/d0", NAN)
    game.ask("r3")
    assert ("r3/d0", bad) in runs(game.through("r3/e"))


def test_the_avoided_server_gets_it_when_the_other_goes() -> None:
    game = halves("a", "b", limit=1)
    bad, good = both_busy(game)
    game.post(ev.LimitsRaised(ServerId(bad), {D: 5}))
    assert not runs(game.failed("r1/d0", NAN))
    assert ("r1/d0", bad) in runs(game.lose(good))


def test_the_avoided_server_gets_it_when_the_other_leaves_or_changes_its_role() -> None:
    for event in (ev.ServerLeaving, lambda server: ev.RolesOrdered(server, frozenset({V}))):
        game = halves("a", "b", limit=1)
        bad, good = both_busy(game)
        game.post(ev.LimitsRaised(ServerId(bad), {D: 5}))
        game.failed("r1/d0", NAN)
        assert runs(game.post(event(ServerId(good)))) == [("r1/d0", bad)]


def test_it_runs_alone() -> None:
    """What made NaN once is to spoil nobody else's picture."""
    game = halves("a", policies=Policies(batching=Together()), limit=1)
    for name in ("r1", "r2", "r3"):
        game.ask(name, exact=False)
        game.through(f"{name}/e")
    assert not runs(game.failed("r1/d0", NAN))
    assert runs(game.post(ev.LimitsRaised(ServerId("a"), {D: 4}))) == [("r1/d0", "a")]
    assert runs(game.through("r1/d0"))[:2] == [("r2/d0", "a"), ("r3/d0", "a")]


def test_a_suspect_server_is_better_than_the_one_that_made_nan() -> None:
    """The elastic policies withhold jobs from a server that fails one after the other."""
    play = Play()
    play.serve("rest", {E, V})
    play.serve("a", {D})
    play.want("r1")
    play.through("r1/e")
    for _ in range(3):
        play.failed("r1/d0")  # "a" is suspect now
    play.serve("b", {D})
    play.want("r2")
    play.through("r2/e")
    assert play.where["r2/d0"] == "b"
    assert runs(play.failed("r2/d0", NAN)) == [("r2/d0", "a")]

"""Who is let in, and what they are told."""

from __future__ import annotations

import pytest

from scheduler import actions as do
from scheduler.elastic.settings import ElasticSettings
from tests.scheduler.game import D, E, V, of
from tests.scheduler_elastic.play import Play

IMAGE_SECONDS = 3.25
"""Of 25 steps at 1024² on an H100, all stages."""


def fused(servers: int = 1, **settings: object) -> Play:
    game = Play(ElasticSettings(elastic_roles=False, **settings))  # type: ignore[arg-type]
    for number in range(servers):
        game.serve(f"s{number}")
    return game


def told(game: Play, name: str, **request: object) -> do.Admit | do.Reject:
    actions = game.want(name, **request)  # type: ignore[arg-type]
    return (of(do.Admit, actions) + of(do.Reject, actions))[0]  # type: ignore[operator]


def test_an_idle_fleet_takes_what_the_request_takes() -> None:
    assert told(fused(), "a").predicted_seconds == pytest.approx(IMAGE_SECONDS, rel=0.02)


def test_those_behind_others_are_told_so() -> None:
    game = fused()
    predicted = [told(game, f"r{number}").predicted_seconds for number in range(5)]
    assert predicted == sorted(predicted)
    assert predicted[4] == pytest.approx(5 * IMAGE_SECONDS, rel=0.1)


def test_a_short_request_overtakes_and_is_told_so() -> None:
    game = fused()
    for number in range(5):
        game.want(f"r{number}")
    assert told(game, "short", side=512).predicted_seconds < 2 * IMAGE_SECONDS


def test_two_servers_halve_the_wait() -> None:
    game = fused(2)
    predicted = [told(game, f"r{number}").predicted_seconds for number in range(8)]
    assert predicted[-1] == pytest.approx(4 * IMAGE_SECONDS, rel=0.2)


def test_stages_apart_from_each_other_are_as_slow_as_the_slowest() -> None:
    game = Play()
    game.serve("e", {E})
    game.serve("d", {D})
    game.serve("v", {V})
    predicted = [told(game, f"r{number}").predicted_seconds for number in range(5)]
    assert predicted[-1] == pytest.approx(5 * IMAGE_SECONDS, rel=0.1)


def test_a_deadline_that_would_be_missed_is_refused_with_a_time_to_come_back() -> None:
    game = fused()
    for number in range(10):
        game.want(f"r{number}")
    verdict = told(game, "late", deadline=20.0)
    assert isinstance(verdict, do.Reject)
    assert verdict.predicted_seconds - 20.0 < verdict.retry_after_seconds < 60.0
    assert verdict.predicted_seconds == pytest.approx(11 * IMAGE_SECONDS, rel=0.15)
    assert "deadline is in 20.0 s" in verdict.reason
    assert isinstance(told(game, "patient", deadline=100.0), do.Admit)
    for number in range(30):
        game.want(f"more{number}", deadline=1000.0)
    assert told(game, "later", deadline=20.0).retry_after_seconds > 60.0, "the API bounds it, not the scheduler"


def test_no_more_requests_than_may_be_under_way() -> None:
    game = fused(max_requests=2)
    assert isinstance(told(game, "a"), do.Admit)
    assert isinstance(told(game, "b"), do.Admit)
    verdict = told(game, "c")
    assert isinstance(verdict, do.Reject)
    assert "2 requests are under way" in verdict.reason


def test_another_tenants_flood_costs_only_ones_own_share() -> None:
    game = fused()
    for number in range(20):
        game.want(f"flood{number}", tenant="flood")
    calm = told(game, "calm", tenant="calm").predicted_seconds
    assert calm < 4 * IMAGE_SECONDS
    assert told(game, "more", tenant="flood").predicted_seconds > 18 * IMAGE_SECONDS


def test_predictions_learn_from_their_errors() -> None:
    """Everything takes twice as long as the work alone explains."""
    game = fused()
    for number in range(60):
        game.want(f"r{number}")
        game.through(f"r{number}/e")
        game.now += 2 * IMAGE_SECONDS
        game.through(f"r{number}/d0", f"r{number}/v0")
        game.taken(f"r{number}/v0")
    assert told(game, "last").predicted_seconds == pytest.approx(2 * IMAGE_SECONDS, rel=0.1)
    assert isinstance(told(game, "tight", deadline=1.9 * IMAGE_SECONDS), do.Reject)


def test_what_nothing_goes_before_is_not_refused_for_what_others_suffered() -> None:
    """Some small pictures took ten times as long as predicted; a large one that was refused would teach nothing."""
    game = fused()
    for number in range(8):
        game.want(f"r{number}", side=256)
        game.through(f"r{number}/e")
        game.now += 10 if number == 3 else 0
        game.through(f"r{number}/d0", f"r{number}/v0")
        game.taken(f"r{number}/v0")
    deadline = 3 * IMAGE_SECONDS
    game.want("small", side=256)
    game.through("small/e")
    behind = told(game, "large", deadline=deadline)
    assert isinstance(behind, do.Reject)
    assert "perhaps only in" in behind.reason
    game.through("small/d0", "small/v0")
    game.taken("small/v0")
    assert isinstance(told(game, "large again", deadline=deadline), do.Admit)
    assert isinstance(told(fused(), "hopeless", deadline=0.9 * IMAGE_SECONDS), do.Reject)


def test_a_request_that_is_over_is_ahead_of_nobody() -> None:
    game = fused()
    for number in range(4):
        game.want(f"r{number}")
        game.through(f"r{number}/e", f"r{number}/d0", f"r{number}/v0")
        game.taken(f"r{number}/v0")
    assert told(game, "last").predicted_seconds == pytest.approx(IMAGE_SECONDS, rel=0.1)

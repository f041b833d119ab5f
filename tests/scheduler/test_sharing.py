"""Attempts that compute together: who does, what is predicted of them, and what is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from scheduler import actions as do
from scheduler import events as ev
from scheduler.cost.model import CostModel
from scheduler.cost.work import Target, Work
from scheduler.policy import Policies
from scheduler.sharing import ends, stretch
from scheduler.spec import Timings
from scheduler.state import Attempt
from tests.scheduler.game import D, E, Game, V, of, runs
from tests.simulation.schedules import Together
from wire.types import Epoch, JobId, RequestId, ServerId


@pytest.mark.parametrize(
    ("left", "marginal", "most", "expected"),
    [
        ([], 0.5, 4, []),
        ([2.0], 0.5, 4, [2.0]),
        ([2.0, 2.0], 0.5, 4, [3.0, 3.0]),
        ([1.0, 3.0], 0.5, 4, [1.5, 3.5]),
        ([3.0, 1.0], 0.0, 4, [3.0, 1.0]),
        ([1.0, 3.0, 1.0], 1.0, 4, [3.0, 5.0, 3.0]),
        ([1.0, 3.0, 1.0], 0.5, 2, [1.5, 4.0, 3.0]),  # the third begins when the first is done
        ([0.0, 2.0], 0.5, 4, [0.0, 2.0]),  # one is overdue
    ],
)
def test_processor_sharing(left: list[float], marginal: float, most: int, expected: list[float]) -> None:
    assert ends(left, marginal, most) == pytest.approx(expected)


def test_processor_sharing_is_what_small_steps_come_to() -> None:
    random = Random(7)
    for _ in range(50):
        left = [random.uniform(0.0, 2.0) for _ in range(random.randint(1, 9))]
        marginal, most = random.uniform(0.0, 1.2), random.randint(1, 9)
        assert ends(left, marginal, most) == pytest.approx(_stepped(left, marginal, most), abs=0.02)


def _stepped(left: Sequence[float], marginal: float, most: int, step: float = 1e-3) -> list[float]:
    rest, done, now = dict(enumerate(left)), [0.0] * len(left), 0.0
    while rest:
        computing = list(rest)[:most]
        now += step
        for index in computing:
            rest[index] -= step / stretch(len(computing), marginal)
            if rest[index] <= 0:
                done[index] = now
                del rest[index]
    return done


def sociable(*names: str, steps: int = 20, limit: int = 100, together: int = 4) -> Game:
    """Fast requests, whose dit jobs are all sent to the server "dit"."""
    game = Game(Policies(batching=Together()))
    game.join("rest", {E, V})
    game.join("dit", {D}, limit, together=together)
    for name in names:
        game.ask(name, steps=steps, exact=False)
        game.through(f"{name}/e")
    return game


def attempt(game: Game, name: str) -> Attempt:
    found = game.scheduler.view.jobs[JobId(f"{name}/d0")].attempt
    assert found is not None
    return found


def begin(game: Game, *names: str) -> None:
    for name in names:
        game.fetched(f"{name}/d0")
        game.started(f"{name}/d0")


def test_the_first_starts_and_the_others_join() -> None:
    game = sociable()
    game.ask("a", exact=False)
    (first,) = of(do.Run, game.through("a/e"))
    game.ask("b", exact=False)
    (second,) = of(do.Run, game.through("b/e"))
    assert (first.server, first.share, second.server, second.share) == ("dit", True, "dit", True)
    assert second.reason.endswith("together with 1")
    assert game.scheduler.view.servers[ServerId("dit")].occupied() == 1


def test_each_counts_against_the_limit() -> None:
    game = sociable("a", "b", "c", limit=2)
    assert game.jobs_on("dit") == ["a/d0", "b/d0"]
    assert runs(game.post(ev.LimitsRaised(ServerId("dit"), {D: 3}))) == [("c/d0", "dit")]


def test_they_end_one_by_one() -> None:
    game = sociable("a", "b", "c")
    begin(game, "a", "b", "c")
    assert runs(game.done("b/d0")) == [("b/v0", "rest")]
    assert game.post(ev.RequestCancelled(RequestId("a")))[-1:]
    game.failed("c/d0")
    assert game.jobs_on("dit") == ["a/d0", "c/d0"], "it is tried again"
    game.cancelled("a/d0")
    assert game.jobs_on("dit") == ["c/d0"]


def test_those_of_other_kinds_wait() -> None:
    game = sociable("a")
    begin(game, "a")
    game.ask("exact")
    game.through("exact/e")
    game.ask("b", exact=False)
    game.through("b/e")
    assert "b/d0" not in game.jobs_on("dit"), "nobody overtakes the exact one for company"


def test_what_remains_goes_by_the_company() -> None:
    game = sociable("a", "b")
    for name in "ab":
        attempt(game, name).marginal = 0.5
    alone = attempt(game, "a").predicted_seconds
    begin(game, "a")
    game.now = 0.4 * alone
    begin(game, "b")
    a, b, server = attempt(game, "a"), attempt(game, "b"), game.scheduler.view.servers[ServerId("dit")]
    assert (a.company, b.company) == (2, 2)
    assert a.remaining(game.now) == pytest.approx(1.5 * 0.6 * alone)
    assert b.remaining(game.now) == server.remaining(game.now) == pytest.approx((1.5 * 0.6 + 0.4) * alone)
    game.now += 0.3 * alone
    assert a.left(game.now) == pytest.approx(0.4 * alone)
    game.done("a/d0")
    assert b.company == 1
    assert b.remaining(game.now) == pytest.approx(0.8 * alone)
    game.now += 0.1 * alone
    assert b.remaining(game.now) == pytest.approx(0.7 * alone)


def test_a_pause_is_no_part_of_it() -> None:
    game = sociable("a", "b")
    begin(game, "a", "b")
    left = attempt(game, "a").left(0.0)
    for name in "ab":
        game.post(ev.JobPaused(ServerId("dit"), game.epochs[f"{name}/d0"], 0))
    assert attempt(game, "a").left(100.0) == left
    game.now = 100.0
    game.started("b/d0")
    assert [attempt(game, name).company for name in "ab"] == [0, 1]
    game.started("a/d0")
    assert [attempt(game, name).company for name in "ab"] == [2, 2]


class Seen(CostModel):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Work, float]] = []

    def observe(self, work: Work, target: Target, server: str, seconds: float) -> None:
        self.seen.append((work, seconds))


def test_observations_tell_the_mean_company_by_steps() -> None:
    game = sociable("a", "b")
    game.scheduler.view.cost = cost = Seen()
    for name in "ab":
        attempt(game, name).marginal = 0.5
    begin(game, "a")
    game.now = 5.0  # 5 steps alone
    begin(game, "b")
    game.now = 5.0 + 1.5 * 5  # and 5 together with another
    game.progressed("a/d0", 10, 20, 1.25)
    ((work, seconds),) = cost.seen
    assert (work.steps, work.batch, seconds) == (10, 1.5, 12.5)
    assert attempt(game, "a").left(game.now) == pytest.approx(10.0)


def test_nobody_is_believed_to_have_had_more_company_than_there_was() -> None:
    game = sociable("a", "b")
    game.scheduler.view.cost = cost = Seen()
    begin(game, "a", "b")
    event = game.done_event("a/d0")
    game.post(replace(event, timings=Timings(compute=9.0, batch=100.0)))
    assert [(work.batch, seconds) for work, seconds in cost.seen] == [(2, 9.0)]


def test_a_report_of_an_attempt_that_joined_and_is_gone_changes_nobody() -> None:
    game = sociable("a", "b")
    begin(game, "a", "b")
    game.done("b/d0")
    game.post(ev.JobPaused(ServerId("dit"), game.epochs["b/d0"], 1))
    game.post(ev.JobStarted(ServerId("dit"), Epoch("g", 999)))
    assert attempt(game, "a").company == 1

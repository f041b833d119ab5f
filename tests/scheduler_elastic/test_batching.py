"""Which jobs compute together: where the sum of all delays gets smaller by it.

FLUX.1-dev at 512²: a job of 25 steps takes 0.88 s alone, and one more together with others costs 0.55 of that.
"""

from __future__ import annotations

import pytest

from scheduler import actions as do
from scheduler.actions import Action
from scheduler.cost.work import Work
from scheduler.elastic.batching import LeastDelay
from scheduler.elastic.fairness import Fairness
from scheduler.elastic.settings import ElasticSettings, Ordering
from scheduler.events import RequestCancelled
from scheduler.spec import JobSpec, RequestSpec, Timings
from scheduler.state import Job, Request
from tests.scheduler.game import MODEL, D, E, V, of
from tests.scheduler_elastic.play import Play
from wire.types import JobId, RequestId, ServerId

STEP = 0.0352
"""Seconds at 512²."""


def play(**settings: object) -> Play:
    settings = {"elastic_roles": False, "preemption": False, "admission_quantile": 0.5, **settings}
    game = Play(ElasticSettings(**settings))  # type: ignore[arg-type]
    game.serve("encoder", {E})
    return game


def ask(game: Play, name: str, **request: object) -> None:
    game.want(name, **({"side": 512, "exact": False} | request))  # type: ignore[arg-type]
    game.waiting_dits(name)


def together(
    requests: list[dict[str, object]], limit: int = 8, *, comes_at: float = 0.0, **settings: object
) -> list[str]:
    """What a dit server gets at once that comes when all of them wait."""
    game = play(**settings)
    for number, request in enumerate(requests):
        ask(game, f"r{number}", **request)
    game.now = comes_at
    game.serve("dit", {D}, together=limit)
    return [job.split("/")[0] for job in game.jobs_on("dit")]


@pytest.mark.parametrize(
    ("requests", "settings", "expected"),
    [
        # With so many behind it, what the device gets done more is worth what those lose that compute already.
        ([{}] * 3, {}, ["r0", "r1"]),
        ([{}] * 6, {}, ["r0", "r1", "r2", "r3"]),
        ([{}] * 20, {}, [f"r{number}" for number in range(8)]),
        ([{}] * 20, {"max_batch": 3}, ["r0", "r1", "r2"]),
        ([{}] * 20, {"max_batch": 1}, ["r0"]),
        ([{"side": 1024}] * 12, {}, ["r0"]),  # one more costs 0.96 jobs
        ([{}, *[{"exact": True}] * 5], {}, ["r0"]),
        ([{"exact": True}, *[{}] * 5], {}, ["r0"]),
        # Whose turn it is decides, and one of another size is not passed over for company.
        ([{}, {"side": 256, "steps": 1000}, *[{}] * 5], {"ordering": Ordering.FIRST_COME}, ["r0"]),
        ([{"steps": 20}, {"steps": 22}, *[{}] * 5], {}, ["r0", "r1", "r2", "r3"]),
        ([{"tenant": "a"}, {"tenant": "b"}, *[{}] * 4], {}, ["r0", "r1", "r2", "r3"]),
    ],
)
def test_who_computes_together(
    requests: list[dict[str, object]], settings: dict[str, object], expected: list[str]
) -> None:
    assert together(requests, **settings) == expected


def test_no_more_than_the_server_allows_and_one_in_line() -> None:
    assert together([{}] * 20, limit=2) == ["r0", "r1"]
    assert together([{}] * 20, limit=1) == ["r0"]


def test_a_small_tenant_slows_nobody_down() -> None:
    shares = {"background": 1e-3}
    crowd: list[dict[str, object]] = [{}, *[{"tenant": "background"}] * 5]
    assert together(crowd) == ["r0", "r1", "r2", "r3"]
    assert together(crowd, tenant_shares=shares) == ["r0"]


def running(game: Play, *requests: dict[str, object]) -> None:
    """Each computes on the only dit server as soon as it is asked for."""
    for number, request in enumerate(requests):
        ask(game, f"run{number}", **request)
        game.fetched(f"run{number}/d0")
        game.started(f"run{number}/d0")


def test_a_short_job_joins_a_long_one_midway() -> None:
    game = play()
    game.serve("dit", {D})
    running(game, {"steps": 15})
    game.at(3 * STEP)
    ask(game, "long", steps=15)
    assert game.jobs_on("dit") == ["run0/d0"], "both would be late"
    ask(game, "short", steps=2)
    assert game.jobs_on("dit") == ["run0/d0", "short/d0"]
    assert of(do.Run, game.through("short/d0")) == []


def test_two_equal_ones_share_where_more_are_expected() -> None:
    """Nobody waits behind them, but who comes meanwhile gains what the device gets done more."""

    def shared(requests_before: int) -> list[str]:
        game = play()
        for number in range(requests_before):
            ask(game, f"before{number}")
            game.post(RequestCancelled(RequestId(f"before{number}")))
            game.at(game.now + 1.0)
        game.serve("dit", {D})
        running(game, {})
        ask(game, "a")
        return game.jobs_on("dit")

    assert shared(0) == ["run0/d0"]
    assert shared(30) == ["run0/d0", "a/d0"]


def test_what_is_kept_from_earlier_is_not_expected_to_be_made() -> None:
    policy, view = LeastDelay(ElasticSettings(), Fairness()), play().scheduler.view
    for name, holder in (("a", ServerId("encoder")), ("b", None)):
        encoder = JobSpec(JobId(f"{name}/e"), E, Work(E))
        dit = JobSpec(JobId(f"{name}/d"), D, Work(D, height=512, width=512, steps=4), (encoder.id,))
        decoder = JobSpec(JobId(f"{name}/v"), V, Work(V, height=512, width=512), (dit.id,))
        request = Request(RequestSpec(RequestId(name), MODEL, (encoder, dit, decoder), 1000.0), 0.0, 0)
        request.jobs = {spec.id: Job(spec, request) for spec in request.spec.jobs}
        request.jobs[encoder.id].holder = holder
        policy.opened(request, view, 0.0)
    rates = {role: policy._coming[MODEL, role].rate(0.0) for role in (E, D)}
    assert rates[D] == 2 * rates[E] > 0


def test_as_others_come_those_that_wait_may_join() -> None:
    game = play()
    game.serve("dit", {D})
    running(game, {})
    ask(game, "a")
    assert game.jobs_on("dit") == ["run0/d0"]
    ask(game, "b")
    assert game.jobs_on("dit") == ["run0/d0", "a/d0"]


def test_a_full_group_has_the_next_in_line_before_one_leaves() -> None:
    game = play()
    game.serve("dit", {D}, together=2)
    running(game, {})
    ask(game, "a", steps=40)
    for name in ("b", "c", "d"):
        ask(game, name, steps=40)
    game.fetched("a/d0")
    game.started("a/d0")
    assert game.jobs_on("dit") == ["run0/d0", "a/d0"]
    while len(game.jobs_on("dit")) == 2:
        due = game.scheduler.next_wakeup()
        assert due is not None
        assert due < 1.55 * 25 * STEP, "before the first leaves, so that its inputs are there by then"
        game.at(due)
    assert game.now > 1.2
    assert game.jobs_on("dit") == ["run0/d0", "a/d0", "b/d0"]


def test_an_idle_device_is_better_than_company() -> None:
    game = play()
    for name in ("one", "two"):
        game.serve(name, {D})
    for name in "abcdef":
        ask(game, name)
    assert {game.where["a/d0"], game.where["b/d0"]} == {"one", "two"}
    assert len(game.jobs_on("one")) == len(game.jobs_on("two")) == 2


def test_nobody_misses_a_deadline_for_company() -> None:
    crowd: list[dict[str, object]] = [{}] * 5
    assert together([{"deadline": 2.0}, *crowd]) == ["r0", "r1", "r2"]
    assert together([{"deadline": 1.0}, *crowd]) == ["r0"], "it would take 1.36 s with another"
    assert together([{"deadline": 1.0}, *crowd], comes_at=0.5) == ["r0", "r1", "r2", "r3"], "it is late in any case"


def test_decoding_is_not_held_up_by_a_group_that_never_ends() -> None:
    game = play()
    game.serve("both", {D, V})
    for name in "abcdef":
        ask(game, name)
    first = game.jobs_on("both")
    assert len(first) == 4
    for job in first:
        game.fetched(job)
        game.started(job)
    game.done(first[0])
    for job in first[1:]:
        assert game.jobs_on("both") == [job, *first[first.index(job) + 1 :]], "nobody joins while a picture waits"
        game.done(job)
    assert game.jobs_on("both")[0].endswith("/v0")


def alone_on_one(*names: str, steps: int = 25, **settings: object) -> Play:
    """Requests that denoise together on the only server, which holds every role; each took 5 steps by itself before."""
    game = Play(ElasticSettings(elastic_roles=False, admission_quantile=0.5, **settings))  # type: ignore[arg-type]
    game.serve("one")
    for name in names:
        game.want(name, 512, steps, exact=False)
        game.through(f"{name}/e")
        game.fetched(f"{name}/d0")
        game.started(f"{name}/d0")
        game.at(game.now + 5 * STEP)
    return game


def let_in(actions: list[Action]) -> list[str]:
    return [run.job for run in of(do.Run, actions) if run.preempt and not run.keep_seconds]


def test_an_encoder_job_is_let_in_where_its_denoising_would_join() -> None:
    """As with any that joins: where more wait behind it, who gain what the device gets done more."""
    game = alone_on_one("a")
    assert let_in(game.want("b", 512, exact=False)) == [], "two equal ones had better take turns"
    assert let_in(game.want("c", 512, exact=False)) == ["b/e"]


@pytest.mark.parametrize(
    ("request_", "settings"),
    [({"side": 1024}, {}), ({"exact": True}, {}), ({}, {"max_batch": 1}), ({}, {"preemption": False})],
)
def test_no_encoder_job_is_let_in(request_: dict[str, object], settings: dict[str, object]) -> None:
    game = alone_on_one("a", **settings)
    for number in range(6):
        actions = game.want(f"r{number}", **({"side": 512, "exact": False} | request_))  # type: ignore[arg-type]
        assert let_in(actions) == []


def test_a_picture_is_decoded_between_two_steps_of_those_that_go_on() -> None:
    """That takes 6 ms, and it would wait for seconds."""
    game = alone_on_one("a")
    for name in "bc":
        game.want(name, 512, 40, exact=False)
    game.through("b/e")
    game.fetched("b/d0")
    game.started("b/d0")
    assert game.jobs_on("one") == ["a/d0", "b/d0"]
    assert let_in(game.done("a/d0")) == ["a/v0"]


def test_each_pays_for_its_share_of_the_device() -> None:
    game = play()
    game.serve("dit", {D})
    for name in "abcd":
        ask(game, name, tenant=name)
    mates = game.jobs_on("dit")
    assert len(mates) > 1
    used = game.scheduler.policies.order._fairness.used  # type: ignore[attr-defined]
    before = used(mates[0][0])
    for job in mates:
        game.fetched(job)
        game.started(job)
    predicted = game.scheduler.view.jobs[mates[0]].attempt.predicted_seconds  # type: ignore[index, union-attr]
    event = game.done_event(mates[0])
    game.post(type(event)(event.server, event.epoch, event.outputs, Timings(compute=1.0, batch=2)))
    assert used(mates[0][0]) - before == pytest.approx(0.5 - predicted)


def test_whoever_computed_on_a_server_that_died_is_alone_from_then_on() -> None:
    """One of them may have ended it: it is not to end others' requests as well."""
    game = play()
    for name in "abcdef":
        ask(game, name)
    game.serve("dit", {D})
    mates = game.jobs_on("dit")
    assert len(mates) > 1
    for job in mates:
        game.fetched(job)
        game.started(job)
    game.lose("dit")
    game.serve("anew", {D})
    server = game.scheduler.view.servers[ServerId("anew")]
    groups = set[tuple[str, ...]]()
    while jobs := game.jobs_on("anew"):
        attempts = {attempt.job.spec.id: attempt for attempt in server.attempts.values()}
        groups |= {tuple(each.job.spec.id for each in server.group(one.group)) for one in attempts.values()}
        game.through(jobs[0])
    assert all(len(group) == 1 for group in groups if set(group) & set(mates))
    assert {job for group in groups for job in group} == {f"{name}/d0" for name in "abcdef"}
    assert any(len(group) > 1 for group in groups), "the others compute together as before"

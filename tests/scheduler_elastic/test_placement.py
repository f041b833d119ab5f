"""Which role a server serves, which server a job goes to, and who rather waits."""

from __future__ import annotations

from scheduler import events as ev
from scheduler.cost.work import Work
from scheduler.elastic.settings import ElasticSettings
from scheduler.spec import Timings
from tests.scheduler.game import D, E, V, runs
from tests.scheduler_elastic.play import Play
from wire.types import ServerId

DIT = Work(D, height=1024, width=1024, steps=25)


def test_where_every_server_holds_everything_each_finishes_what_it_began() -> None:
    game = Play()
    game.serve("one")
    for name in ("a", "b"):
        game.want(name)
    order = []
    for _ in range(6):
        job = game.jobs_on("one")[0]
        order.append(job)
        game.through(job)
    assert order == ["a/e", "a/d0", "a/v0", "b/e", "b/d0", "b/v0"]


def test_an_encoder_server_feeds_those_that_would_starve_before_it_decodes() -> None:
    game = Play()
    game.serve("mixed", {E, V})
    game.serve("dit", {D})
    game.want("a")
    game.want("b")
    game.waiting_dits("a")
    assert game.jobs_on("mixed") == ["b/e"]
    game.through("a/d0")
    game.want("c")
    game.through("b/e")
    assert game.jobs_on("dit") == ["b/d0"]
    assert game.jobs_on("mixed")[0] in {"a/v0", "c/e"}


def test_a_dit_server_leaves_decoding_to_one_that_has_nothing_to_do() -> None:
    game = Play()
    game.serve("mixed", {E, V})
    game.serve("dit", {D, V})
    game.want("a")
    game.want("b")
    game.waiting_dits("a", "b")
    assert game.jobs_on("mixed") == []
    game.through("a/d0")
    assert (game.jobs_on("dit"), game.jobs_on("mixed")) == (["b/d0"], ["a/v0"])


def test_a_job_goes_to_the_server_that_is_done_first_and_of_equals_to_the_holder_of_its_inputs() -> None:
    game = Play()
    for name in ("one", "two", "three"):
        game.serve(name, {D, V})
    game.serve("encoder", {E})
    game.want("a")
    game.through("a/e")
    server = game.where["a/d0"]
    game.through("a/d0")
    assert game.where["a/v0"] == server


def test_the_next_job_comes_before_the_device_is_free_unless_the_present_one_goes_on_there() -> None:
    for roles, early in (({D}, True), ({D, V}, False)):
        game = Play()
        game.serve("encoder", {E})
        game.serve("other", {V})
        game.serve("dit", roles)
        game.want("a")
        game.want("b")
        game.waiting_dits("a", "b")
        game.fetched("a/d0")
        game.started("a/d0")
        game.at(3.15)
        assert (game.jobs_on("dit") == ["a/d0", "b/d0"]) is early


def fast_and_slow(fast_limit: int = 1000) -> Play:
    game = Play()
    game.serve("encoder", {E})
    game.serve("fast", {D})
    game.serve("slow", {D})
    game.scheduler.view.servers[ServerId("fast")].limits[D] = fast_limit
    game.post(ev.LimitsRaised(ServerId("fast"), {}))
    slow = game.scheduler.view.servers[ServerId("slow")]
    for _ in range(40):
        for name, seconds in (("fast", 3.22), ("slow", 5 * 3.22)):
            game.scheduler.view.cost.observe(DIT, slow.spec.target, name, seconds)
    return game


def test_nothing_waits_for_a_fast_server_that_is_idle_and_takes_nothing() -> None:
    """Its store is full."""
    game = fast_and_slow(fast_limit=0)
    game.want("r")
    game.waiting_dits("r")
    assert game.jobs_on("slow") == ["r/d0"]


def test_a_slow_server_waits_until_waiting_for_a_faster_one_takes_longer() -> None:
    game = fast_and_slow()
    for number in range(2):
        game.want(f"r{number}")
        game.waiting_dits(f"r{number}")
    assert (game.jobs_on("fast"), game.jobs_on("slow")) == (["r0/d0"], [])
    for number in range(2, 7):
        game.want(f"r{number}")
        game.waiting_dits(f"r{number}")
    assert len(game.jobs_on("slow")) == 1


def broken_first() -> Play:
    game = Play(ElasticSettings(elastic_roles=False, probation_seconds=10.0))
    game.serve("broken")
    game.want("a")
    game.started("a/e")
    game.failed("a/e")
    assert game.jobs_on("broken") == ["a/e"]
    return game


def test_a_server_that_fails_again_and_again_gets_nothing_while_there_is_another() -> None:
    game = broken_first()
    game.serve("sound")
    game.failed("a/e")
    assert game.where["a/e"] == "sound"
    for number in range(3):
        game.want(f"r{number}")
    assert game.jobs_on("broken") == []


def on_trial() -> Play:
    game = broken_first()
    game.serve("sound")
    game.failed("a/e")
    game.at(11.0)
    game.want("trial")
    assert game.jobs_on("broken") == ["trial/e"]
    return game


def test_it_gets_one_job_on_trial_after_its_probation_and_success_clears_it() -> None:
    game = on_trial()
    game.through("trial/e")
    assert game.where["trial/d0"] == "broken"


def test_the_end_of_a_probation_is_noticed_although_nothing_happens() -> None:
    game = Play(ElasticSettings(probation_seconds=10.0))
    for name in ("broken", "sound"):
        game.serve(name)
    broken = game.scheduler.view.servers[ServerId("broken")]
    placement = game.scheduler.policies.placement
    for number in range(9):
        game.want(f"r{number}")
    while (on := game.jobs_on("broken")) and not placement.withholds(broken, E, game.scheduler.view, game.now):
        game.failed(on[0])
    assert not game.jobs_on("broken")
    game.at(12.0)
    assert game.jobs_on("broken")


def test_failing_the_trial_doubles_the_probation() -> None:
    game = on_trial()
    game.failed("trial/e")
    game.at(30.0)
    game.want("early")
    assert game.jobs_on("broken") == []
    game.at(31.5)
    game.want("late")
    assert game.jobs_on("broken") != []


def test_the_only_holder_works_on_however_often_it_fails() -> None:
    game = broken_first()
    game.failed("a/e")
    assert game.jobs_on("broken") == ["a/e"]


def test_lost_inputs_are_not_the_servers_fault() -> None:
    game = Play()
    game.serve("encoder", {E})
    game.serve("dit", {D})
    game.want("a")
    game.through("a/e")
    lost = game.handle("a/e")
    for _ in range(3):
        actions = game.post(
            ev.JobFailed(game.where["a/d0"], game.epochs["a/d0"], "fetch_failed", "gone", True, lost_inputs=(lost,))
        )
        assert ("a/e", "encoder") in runs(actions)
        game.through("a/e")
        lost = game.handle("a/e")
        if game.scheduler.view.jobs["a/d0"].failures == 2:
            break
    assert game.where["a/d0"] == "dit"


def test_fetching_is_begun_as_early_as_it_takes() -> None:
    game = Play()
    game.serve("one", {D})
    server = game.scheduler.view.servers[ServerId("one")]
    placement = game.scheduler.policies.placement
    before = placement.lead_seconds(server)
    game.serve("encoder", {E})
    game.want("a")
    game.through("a/e")
    done = game.done_event("a/d0")
    game.post(ev.JobDone(done.server, done.epoch, done.outputs, Timings(compute=3.0, fetch=2.0)))
    assert placement.lead_seconds(server) > before + 1.5

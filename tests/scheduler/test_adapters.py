"""Jobs with adapters go to servers that have them, and hold up nobody else."""

from __future__ import annotations

from random import Random

import pytest

from scheduler import actions as do
from scheduler import events as ev
from scheduler.elastic.settings import ElasticSettings
from tests.scheduler.game import ALL, D, E, Game, V, of, runs
from tests.scheduler_elastic.play import Play
from wire.types import Epoch, ServerId

STYLE, INK = "style@1", "ink@1"


def fleet() -> Game:
    """An encoder and decoder server, a dit server with an adapter and one without."""
    game = Game()
    game.join("rest", {E, V})
    game.join("plain", {D})
    game.join("adapted", {D}, adapters={STYLE: {D}})
    return game


def test_only_a_server_that_has_the_adapter_gets_its_job() -> None:
    game = fleet()
    for name in ("r1", "r2"):
        game.ask(name, adapters={D: {STYLE}})
        game.through(f"{name}/e")
    assert game.where["r1/d0"] == "adapted"
    assert "r2/d0" not in game.where
    assert ("r2/d0", "adapted") in runs(game.through("r1/d0"))


def test_a_job_that_waits_for_its_adapter_holds_up_nobody() -> None:
    game = fleet()
    for name in ("r1", "r2", "r3"):
        game.ask(name, adapters={D: {STYLE}})
        game.through(f"{name}/e")
    game.ask("free")
    assert ("free/d0", "plain") in runs(game.through("free/e"))


def test_stages_that_an_adapter_does_not_concern_go_anywhere() -> None:
    game = fleet()
    assert runs(game.ask("r", adapters={D: {STYLE}})) == [("r/e", "rest")]
    game.through("r/e")
    assert runs(game.through("r/d0")) == [("r/v0", "rest")]


def test_several_adapters_need_one_server_that_has_them_all() -> None:
    game = fleet()
    game.join("other", {D}, adapters={INK: {D}})
    game.ask("r", adapters={D: {STYLE, INK}})
    assert runs(game.through("r/e")) == []
    assert runs(game.join("both", {D}, adapters={INK: {D}, STYLE: {D}})) == [("r/d0", "both")]


def test_a_lost_server_leaves_its_job_to_the_next_that_has_the_adapter() -> None:
    game = fleet()
    game.ask("r", adapters={D: {STYLE}})
    game.through("r/e")
    game.started("r/d0")
    assert runs(game.lose("adapted")) == []
    game.join("empty", {D})
    assert runs(game.join("again", {D}, adapters={STYLE: {D}})) == [("r/d0", "again")]


def test_a_server_avoided_for_a_fault_gets_it_again_where_no_other_has_the_adapter() -> None:
    game = fleet()
    game.ask("r", adapters={D: {STYLE}})
    game.through("r/e")
    assert runs(game.failed("r/d0", "non_finite")) == [("r/d0", "adapted")]


def test_a_request_goes_on_elsewhere_where_its_server_lacks_the_adapter() -> None:
    game = Game()
    game.join("all", ALL)
    game.join("adapted", ALL, adapters={STYLE: {D}})
    for number in range(6):
        game.ask(f"r{number}", adapters={D: {STYLE}} if number % 2 else None)
    while waiting := [job for job in game.where if job in game.epochs and _is_live(game, job)]:
        game.through(waiting[0])
    assert all(game.where[f"r{number}/d0"] == "adapted" for number in (1, 3, 5))


def _is_live(game: Game, job: str) -> bool:
    found = game.scheduler.view.jobs.get(job)  # type: ignore[call-overload]
    return found is not None and found.attempt is not None


# --- elastic ----------------------------------------------------------------------------------------------------------


def test_jobs_compute_together_only_with_equal_adapters() -> None:
    play = Play(ElasticSettings(elastic_roles=False))
    play.serve("rest", {E, V})
    play.serve("dit", {D}, adapters=[STYLE])
    for number, adapters in enumerate(([STYLE], [STYLE], [], [STYLE])):
        play.want(f"r{number}", 256, exact=False, adapters=adapters)
        play.through(f"r{number}/e")
        if not number:
            play.started("r0/d0")
    groups: dict[Epoch, set[frozenset[str]]] = {}
    for attempt in play.scheduler.view.servers[ServerId("dit")].attempts.values():
        groups.setdefault(attempt.group, set()).add(attempt.job.spec.adapters)
    assert max(len(play.scheduler.view.servers[ServerId("dit")].group(group)) for group in groups) > 1
    assert all(len(kinds) == 1 for kinds in groups.values())


def test_those_behind_a_job_without_a_server_join_others_meanwhile() -> None:
    play = Play(ElasticSettings(elastic_roles=False))
    play.serve("rest", {E, V})
    play.serve("dit", {D})
    play.want("first", 256, exact=False)
    play.through("first/e")
    play.started("first/d0")
    play.want("adapted", 256, steps=1, exact=False, adapters=[STYLE])
    play.through("adapted/e")
    play.want("free", 256, exact=False)
    play.through("free/e")
    assert play.jobs_on("dit") == ["first/d0", "free/d0"]


def test_those_behind_a_job_without_a_server_interrupt_others_meanwhile() -> None:
    play = Play(ElasticSettings(elastic_roles=False))
    play.serve("rest", {E, V})
    play.serve("dit", {D})
    play.want("long", 2048)
    play.through("long/e")
    play.fetched("long/d0")
    play.started("long/d0")
    play.at(play.now + 0.633)
    play.progressed("long/d0", 1, 25, 0.633)
    play.want("adapted", 256, steps=1, adapters=[STYLE])
    play.through("adapted/e")
    play.want("short", 256)
    (run,) = [run for run in of(do.Run, play.through("short/e")) if run.role is D]
    assert (run.job, run.preempt) == ("short/d0", True)
    assert "adapted/d0" not in play.where


def test_interrupting_is_tried_again_although_a_job_without_a_server_is_the_best() -> None:
    """Once the pace of what runs is known."""
    play = Play(ElasticSettings(elastic_roles=False))
    play.serve("rest", {E, V})
    play.serve("dit", {D})
    play.want("long", 2048)
    play.through("long/e")
    play.fetched("long/d0")
    play.started("long/d0")
    play.want("adapted", 256, steps=1, adapters=[STYLE])
    play.through("adapted/e")
    play.want("short", 256)
    assert [run.job for run in of(do.Run, play.through("short/e")) if run.role is D] == []
    play.at(play.now + 0.633)
    assert runs(play.progressed("long/d0", 1, 25, 0.633)) == [("short/d0", "dit")]


def predictions(play: Play, count: int, **request: object) -> list[float]:
    told = []
    for number in range(count):
        actions = play.want(f"{len(play.scheduler.view.live)}.{number}", **request)  # type: ignore[arg-type]
        told += [admit.predicted_seconds for admit in of(do.Admit, actions)]
    assert len(told) == count
    return told


def test_predictions_count_the_servers_that_have_the_adapters() -> None:
    def fleet(*, adapted: int) -> Play:
        play = Play(ElasticSettings(elastic_roles=False, admission_quantile=0.5))
        for number in range(4):
            play.serve(f"s{number}", adapters=[STYLE] if number < adapted else [])
        return play

    free = predictions(fleet(adapted=4), 8, adapters=[STYLE])
    assert free == predictions(fleet(adapted=0), 8), "where all have it, it makes no difference"
    scarce = predictions(fleet(adapted=1), 8, adapters=[STYLE])
    assert scarce[0] == free[0]
    assert scarce[7] == pytest.approx(8 * free[0], rel=0.15)
    assert free[7] < 3 * free[0]


def test_the_work_of_others_is_done_by_others_too() -> None:
    """Half of what waits and can run anywhere is done by the other half of the servers."""
    play = Play(ElasticSettings(elastic_roles=False, admission_quantile=0.5))
    play.serve("plain")
    play.serve("adapted", adapters=[STYLE])
    *_, free = predictions(play, 8)
    (mine,) = predictions(play, 1, adapters=[STYLE])
    assert mine == pytest.approx(free, rel=0.3)


def test_tenants_take_turns_with_and_without_adapters() -> None:
    """Both lanes of a tenant are seen by a server that has the adapter; the shorter job goes first."""
    play = Play()
    play.serve("rest", {E, V})
    play.serve("dit", {D}, adapters=[STYLE])
    play.want("first")
    play.want("long", steps=50, adapters=[STYLE])
    play.want("short", steps=2)
    play.want("middle", steps=10, adapters=[STYLE])
    play.waiting_dits("first", "long", "short", "middle")
    assert set(play.serve_in_turn(4)) == {"first", "long", "short", "middle"}


def test_of_equal_servers_the_one_that_has_had_the_adapter_is_taken() -> None:
    play = Play()
    play.serve("rest", {E, V})
    for name in ("a", "b", "c"):
        play.serve(name, {D}, adapters=[STYLE])
    used = set()
    for name in ("r1", "r2", "r3"):
        play.want(name, adapters=[STYLE])
        play.through(f"{name}/e")
        used.add(play.where[f"{name}/d0"])
        play.through(f"{name}/d0")
        play.through(f"{name}/v0")
    assert len(used) == 1


def test_nothing_takes_the_last_server_with_an_adapter_from_its_role() -> None:
    """Not a plan; what another server has as well may go."""
    game = Game()
    game.join("rest", {E, V})
    game.join("one", {D}, adapters={STYLE: {D}})
    game.join("two", {D})
    fleet = game.scheduler._fleet
    servers = game.scheduler.view.servers
    assert not fleet._may_assign(servers[ServerId("one")], frozenset({E}))
    assert fleet._may_assign(servers[ServerId("two")], frozenset({E}))
    game.join("three", {D}, adapters={STYLE: {D}})
    assert fleet._may_assign(servers[ServerId("one")], frozenset({E}))


@pytest.mark.parametrize("kind", [Game, Play])
@pytest.mark.parametrize("seed", range(60))
def test_whatever_comes_and_goes_every_request_ends(kind: type[Game], seed: int) -> None:
    """``invariants.check`` looks after every event that no job is where its adapters are not."""
    rng = Random(seed)
    game = kind()
    game.join("rest", {E, V}, adapters={STYLE: {E, D}})
    games: list[str] = []
    for number in range(60):
        match rng.randrange(6):
            case 0:
                name = f"s{rng.randrange(4)}"
                if name not in game.scheduler.view.servers:
                    some = {one: rng.choice(({D}, {E, D})) for one in (STYLE, INK) if rng.random() < 0.5}
                    game.join(name, rng.choice(({D}, ALL, {E, D})), adapters=some)
            case 1 if rng.random() < 0.3:
                game.lose(f"s{rng.randrange(4)}")
            case 2 | 3:
                games.append(f"r{number}")
                needed = frozenset(one for one in (STYLE, INK) if rng.random() < 0.3)
                game.ask(games[-1], adapters={D: needed, E: needed & {STYLE}} if needed else None)
            case _:
                _one_step(game, rng)
        game.now += rng.random() * 0.1
    game.join("last", ALL, adapters={STYLE: {E, D}, INK: {D}})
    for _ in range(2000):
        if not game.scheduler.view.live:
            break
        if not _one_step(game, rng):
            game.at(game.now + 1.0)
    assert not game.scheduler.view.live


def _one_step(game: Game, rng: Random) -> bool:
    live = sorted(job for job in game.where if _is_live(game, job))
    if live:
        actions = game.through(rng.choice(live))
        for fetch in of(do.FetchResult, actions):
            if fetch.job in game.scheduler.view.jobs:
                game.post(ev.ResultTaken(fetch.job))
    return bool(live)

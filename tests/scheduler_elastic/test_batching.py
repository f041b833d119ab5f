"""Which jobs run together."""

from __future__ import annotations

import pytest

from scheduler.elastic.settings import ElasticSettings
from tests.scheduler.game import D, E
from tests.scheduler_elastic.play import Play


def batch(requests: list[dict[str, object]], **settings: object) -> list[str]:
    """What the only dit server gets after its first job, of jobs that wait meanwhile."""
    settings = {"max_batch": 4, **settings}
    game = Play(ElasticSettings(elastic_roles=False, preemption=False, **settings))  # type: ignore[arg-type]
    game.serve("encoder", {E})
    game.serve("dit", {D})
    game.want("first")
    game.waiting_dits("first")
    for number, request in enumerate(requests):
        game.want(f"r{number}", **({"side": 512, "seeded": False} | request))  # type: ignore[arg-type]
        game.waiting_dits(f"r{number}")
    game.through("first/d0")
    return [job.split("/")[0] for job in game.jobs_on("dit")]


@pytest.mark.parametrize(
    ("requests", "settings", "expected"),
    [
        ([{}, {}, {}], {}, ["r0", "r1", "r2"]),
        ([{}] * 6, {}, ["r0", "r1", "r2", "r3"]),
        ([{}] * 6, {"max_batch": 2}, ["r0", "r1"]),
        ([{}, {}], {"max_batch": 1}, ["r0"]),
        ([{"side": 1024}, {"side": 1024}], {}, ["r0"]),  # a further member costs 0.96 jobs
        ([{}, {"steps": 30}, {}], {}, ["r0", "r2"]),
        ([{}, {"seeded": True}, {}], {}, ["r0", "r2"]),
        ([{"seeded": True}, {}], {}, ["r0"]),
        ([{"seeded": True}, {}], {"batch_seeded": True}, ["r0", "r1"]),
        ([{}, {"tenant": "other"}], {}, ["r0"]),
        ([{"priority": 1}, {}], {}, ["r0"]),
    ],
)
def test_equal_work_runs_together(
    requests: list[dict[str, object]], settings: dict[str, object], expected: list[str]
) -> None:
    assert batch(requests, **settings) == expected


def test_nobody_misses_a_deadline_for_company() -> None:
    """Alone 0.88 s; four together 2.3 s."""
    assert batch([{"deadline": 5.4}, {}, {}, {}], admission_quantile=0.5) == ["r0", "r1", "r2", "r3"]
    assert batch([{"deadline": 4.6}, {}, {}, {}], admission_quantile=0.5)[:1] == ["r0"]


def test_where_a_device_is_idle_nobody_shares() -> None:
    game = Play()
    game.serve("encoder", {E})
    for name in ("one", "two"):
        game.serve(name, {D})
    for name in ("a", "b"):
        game.want(name, 512, seeded=False)
    game.waiting_dits("a", "b")
    assert {game.where["a/d0"], game.where["b/d0"]} == {"one", "two"}

"""Virtual counters."""

from __future__ import annotations

from scheduler.cost.model import CostModel
from scheduler.cost.work import Work
from scheduler.elastic.fairness import MAX_IDLE, Fairness
from scheduler.spec import JobSpec, RequestSpec
from scheduler.state import Request
from scheduler.view import View
from tests.scheduler.game import V
from wire.types import JobId, ModelKey, RequestId


def request(tenant: str) -> Request:
    job = JobSpec(JobId("v"), V, Work(V, height=64, width=64))
    return Request(RequestSpec(RequestId("r"), ModelKey("m"), (job,), 10.0, tenant), 0.0, 0)


def test_counters_of_idle_tenants_do_not_pile_up() -> None:
    fairness, view = Fairness(), View(CostModel())
    for number in range(4 * MAX_IDLE):
        some = request(f"tenant{number}")
        fairness.opened(some, view, 0.0)
        fairness.over(some, finished=True)
    assert len(fairness._used) <= MAX_IDLE + 1


def test_of_equal_tenants_the_first_by_name() -> None:
    assert Fairness().next(["b", "a"]) == "a"

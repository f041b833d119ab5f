"""What the autoscaler orders, from events."""

from __future__ import annotations

import pytest

from scheduler import actions as do
from scheduler import events as ev
from scheduler.scaling.pools import Pool, ScalingSettings
from tests.scheduler_scaling.site import MODEL, PROFILE, SECONDS, Site, gpus
from wire.types import REQUIRED, ServerId

E, D, V = REQUIRED


def test_a_pool_has_its_least_from_the_start() -> None:
    order = Site(gpus(2)).decide()
    assert (order.wanted, order.ready, order.starting) == (2, 0, 2)


def test_a_pool_that_may_be_empty_starts_once_so_that_its_model_is_known() -> None:
    site = Site(gpus())
    assert site.decide().wanted == 1
    assert "introduced" in site.scaler.latest[0].why
    site.join("a")
    assert site.decide(400).drain == ("a/1",)


def test_an_idle_model_keeps_its_servers_for_a_while() -> None:
    site = Site(gpus())
    site.decide()
    site.join("a")
    site.ask()
    site.end(1)
    assert site.decide(290).wanted == 1
    order = site.decide(20)
    assert (order.wanted, order.drain) == (0, ("a/1",))
    assert "nothing was asked for in 300 s" in order.why


def test_a_first_request_is_told_that_a_server_has_to_start() -> None:
    site = Site(gpus(cold_start_seconds=90.0))
    site.join("a")
    site.post(ev.ServerLost(_id("a"), "gone"))
    admitted = site.ask(600.0)
    assert isinstance(admitted, do.Admit)
    assert admitted.predicted_seconds == pytest.approx(95.0 + SECONDS, abs=5.0)
    assert site.decide().wanted == 1
    refused = site.ask(60.0)
    assert isinstance(refused, do.Reject)
    assert refused.retry_after_seconds > 40.0


def test_predictions_count_on_servers_that_are_on_their_way_but_not_for_ever() -> None:
    site = Site(gpus(1, cold_start_seconds=50.0))
    site.join("a")
    site.post(ev.ServerLost(_id("a"), "gone"))
    site.decide(1.0)
    soon = site.ask(600.0)
    site.now += 30.0
    sooner = site.ask(600.0)
    assert isinstance(soon, do.Admit)
    assert isinstance(sooner, do.Admit)
    assert sooner.predicted_seconds < soon.predicted_seconds + SECONDS - 20.0
    assert site.scaler.expected(MODEL, site.now)[0].seconds == pytest.approx(20.0, abs=2.0)
    site.now += 200.0
    assert [each.seconds for each in site.scaler.expected(MODEL, site.now)] == [pytest.approx(55.0, abs=1.0)]


def test_a_backlog_that_deadlines_do_not_allow_starts_servers_and_no_more_than_may_be() -> None:
    site = Site(gpus(1, 3))
    site.join("a")
    for _ in range(6):
        site.ask(600.0)
    assert site.decide().wanted > 1
    for _ in range(30):
        site.ask(3600.0)
    order = site.decide()
    assert order.wanted == 3
    assert "more would be needed" in order.why


def test_starts_are_measured_and_believed() -> None:
    site = Site(gpus(1, cold_start_seconds=100.0))
    site.decide()
    site.now += 39.0
    site.join("a")
    order = site.decide()
    assert order.cold_starts == {"a/1": pytest.approx(39.0)}
    assert order.cold_start_seconds == pytest.approx((2 * 100.0 + 39.0) / 3)


def test_a_server_that_nobody_ordered_measures_nothing() -> None:
    site = Site(gpus(1))
    site.join("a")
    assert not site.decide().cold_starts


def test_a_lost_server_is_replaced_and_its_start_measured() -> None:
    site = Site(gpus(1))
    site.join("a")
    site.decide()
    site.post(ev.ServerLost(_id("a"), "killed"))
    site.now += 70.0
    site.join("b")
    assert site.decide().cold_starts == {"b/1": pytest.approx(70.0)}


def test_a_server_that_will_be_lost_is_replaced_at_once_and_stops_in_time() -> None:
    site = Site(gpus(1))
    site.join("a")
    site.ask()
    site.decide()
    site.post(ev.LossAnnounced(_id("a"), 120.0))
    order = site.decide(0.0)
    assert (order.wanted, order.starting, order.drain) == (1, 1, ())
    assert site.decide(80.0).drain == ()
    order = site.decide(15.0)
    assert order.drain == order.lost == ("a/1",)


def test_a_pool_shrinks_only_after_its_dwell_and_never_below_its_least() -> None:
    site = Site(gpus(1, 4), settings=ScalingSettings(dwell_seconds=30.0, idle_seconds=10_000.0))
    for name in "abc":
        site.join(name)
    site.ask()
    site.end(1)
    assert site.decide().wanted == 3
    wanted = [site.decide().wanted for _ in range(60)]
    assert wanted == sorted(wanted, reverse=True)
    assert wanted[-1] == 1
    assert wanted.index(2 if 2 in wanted else 1) * 5.0 >= 110.0  # a start takes longer than the dwell


def ask_often(site: Site, seconds: float, in_each: int, *, stay: bool = False) -> list[int]:
    """So many requests in each five seconds, which are gone at once unless they ``stay``. What was wanted."""
    wanted = []
    for _ in range(int(seconds / 5)):
        for _ in range(in_each):
            site.ask(3600.0)
            if not stay:
                site.end(site.requests)
        wanted.append(site.decide().wanted)
    return wanted


def steady() -> Site:
    """Four servers for half an hour, which are needed."""
    site = Site(gpus(1, 30), settings=ScalingSettings(idle_seconds=10_000.0))
    for number in range(4):
        site.join(f"a{number}")
    assert ask_often(site, 1800.0, 1)[-1] == 4
    return site


def test_after_a_clear_fall_servers_go_before_the_dwell_is_over() -> None:
    wanted = ask_often(steady(), 100.0, 0)
    assert wanted[-1] < 4, "what was needed before says nothing of what is needed now"


def test_what_was_thought_of_a_new_level_at_first_is_superseded_before_a_start_is_over() -> None:
    site = steady()
    most = ask_often(site, 15.0, 5)[-1]
    assert ask_often(site, 115.0, 1)[-1] < most


def test_work_that_waits_since_a_crowd_came_may_take_a_while_to_be_done() -> None:
    wanted = ask_often(steady(), 60.0, 4, stay=True)  # 16.8 servers' worth, and 700 to 800 s of work that waits
    assert 17 <= wanted[-1] <= 22


def test_servers_for_work_that_waits_since_a_crowd_came_go_when_it_is_done() -> None:
    site = steady()
    first = site.requests + 1
    most = ask_often(site, 60.0, 4, stay=True)[-1]
    for number in range(4, most):
        site.join(f"b{number}")
    assert ask_often(site, 130.0, 4, stay=True)[-1] >= most
    for number in range(first, site.requests + 1):
        site.end(number)
    assert ask_often(site, 10.0, 4)[-1] < most - 5


def test_the_last_holder_of_a_role_stays() -> None:
    site = Site(gpus(1, 4), settings=ScalingSettings(dwell_seconds=0.0, idle_seconds=10_000.0))
    site.join("a", roles=(E, V))
    site.join("b", roles=(D,))
    site.ask()
    for _ in range(60):
        order = site.decide()
    assert not order.drain


def test_a_server_that_was_to_go_stays_when_it_is_needed_again() -> None:
    site = Site(gpus(0, 2))
    site.join("a")
    site.decide()
    assert site.decide(400.0).drain == ("a/1",)
    site.ask(600.0)
    order = site.decide()
    assert (order.wanted, order.starting, order.drain) == (1, 0, ())


def test_the_cheaper_of_two_pools_grows_first_and_shrinks_last() -> None:
    name = PROFILE.model.name
    site = Site(Pool("dear", name, 0, 4, price=2.0), Pool("cheap", name, 0, 2, price=1.0))
    site.join("a", "cheap")
    for _ in range(12):
        site.ask(3600.0)
    dear, cheap = site.decide_all()
    assert cheap.wanted == 2
    assert dear.wanted >= 1


def test_servers_of_no_pool_count_as_capacity_alone() -> None:
    site = Site(gpus(0, 4))
    site.join("mine", pool="")
    site.ask()
    assert site.decide().wanted == 0


def test_roles_that_do_not_fit_together_need_a_server_each() -> None:
    largest = max(part.weights_bytes + part.activation_bytes for part in PROFILE.roles.values())
    site = Site(gpus(0, 4), memory_bytes=largest)
    site.join("a", roles=(D,))
    site.ask(3600.0)
    assert site.decide().wanted == 2


def test_requests_for_a_model_that_no_server_ever_had_are_nobodys() -> None:
    site = Site(gpus(1))
    site.ask()
    assert site.decide().wanted == 1


def test_a_model_is_known_by_what_clients_call_it() -> None:
    site = Site(Pool("gpus", "pictures", 0, 4))
    site.decide()
    site.join("a", served_as="pictures")
    order = site.decide()
    assert (order.ready, order.starting) == (1, 0)
    site.now += 400.0  # nobody asks
    assert site.decide().drain == (ServerId("a/1"),)


def test_two_pools_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two pools are named gpus"):
        Site(gpus(), gpus())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"min": 3, "max": 2}, "max at least min"),
        ({"max": 0}, "at least 1"),
        ({"model": ""}, "a name and a model"),
        ({"roles": frozenset()}, "some role"),
        ({"cold_start_seconds": 0.0}, "cold_start_seconds is above 0"),
        ({"price": float("nan")}, "price is above 0"),
    ],
)
def test_a_pool_that_makes_no_sense_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Pool(**{"name": "p", "model": "m"} | given)  # type: ignore[arg-type]


def _id(name: str) -> ServerId:
    return ServerId(f"{name}/1")

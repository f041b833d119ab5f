"""The twin by itself: does it do what a stage server does, and take as long?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from scheduler import actions as do
from scheduler import events as ev
from scheduler.actions import Action
from scheduler.policy import Downstream, Policies
from scheduler.sim.bound import at_load, fluid_rate, static_rate, with_best_roles
from scheduler.sim.clock import Clock
from scheduler.sim.device import Device, Task
from scheduler.sim.engine import Simulation, simulate
from scheduler.sim.metrics import End, mean
from scheduler.sim.policies import named
from scheduler.sim.setup import Freeze, Kill, Leave, Network, Scenario, ServerSetup, SlowDown, Unreachable
from scheduler.sim.suite import SUITE, backlog, bundled_profile, fleet, scaled
from scheduler.sim.workload import Arrival, Kind, Phase, Workload, mix_of
from scheduler.spec import Timings
from tests.simulation.schedules import Impatient, Together
from wire.types import REQUIRED, Role

FLUX = bundled_profile("flux.1-dev-h100")
QUIET = Network(control=0.0, latency=0.0, bandwidth=1e30, jitter=0.0, detection=0.0)
PICTURE = Kind("1024", 1024, 1024, 10)
ENCODE, STEP, DECODE = 0.0305, 0.128, 0.0276
"""Of FLUX at 1024², seconds."""


def quiet(*arrivals: Arrival, servers: int = 1, **fields: Any) -> Scenario:
    """No noise, no network, one class of servers with all roles."""
    setups = tuple(ServerSetup(f"s{i}", FLUX) for i in range(servers))
    values: dict[str, Any] = {"network": QUIET, "noise": 0.0, "publish_seconds": 0.0, **fields}
    return Scenario("quiet", setups, Workload(trace=arrivals), **values)


class Diary:
    """What happened when."""

    def __init__(self) -> None:
        self.events: list[tuple[float, ev.Event]] = []
        self.actions: list[tuple[float, Action]] = []

    def decided(self, event: ev.Event, actions: list[Action], now: float) -> None:
        self.events.append((now, event))
        self.actions += [(now, action) for action in actions]

    def computed(self, server: str, role: Role | None, since: float, now: float) -> None: ...

    def times(self, kind: type[ev.Event]) -> list[float]:
        return [at for at, event in self.events if isinstance(event, kind)]


# --- time -------------------------------------------------------------------------------------------------------------


def test_a_request_alone_takes_the_sum_of_its_stages() -> None:
    result = simulate(quiet(Arrival(1.0, PICTURE)), Policies())
    assert result.latencies() == [pytest.approx(ENCODE + 10 * STEP + DECODE, rel=1e-3)]
    assert result.requests[0].slowdown == pytest.approx(1.0)
    assert result.lost() == 0


def test_tensors_take_their_time_between_servers_and_none_within_one() -> None:
    slow = replace(QUIET, bandwidth=1e7)
    here = quiet(Arrival(1.0, PICTURE), network=slow)
    split = replace(here, servers=tuple(ServerSetup(role.value, FLUX, frozenset({role})) for role in REQUIRED))
    sizes = [sum(FLUX.output_bytes(role, 1024, 1024).values()) for role in (Role.ENCODER, Role.DIT)]
    difference = simulate(split, Policies()).latencies()[0] - simulate(here, Policies()).latencies()[0]
    assert difference == pytest.approx(sum(sizes) / 1e7, rel=1e-6)


def test_inputs_are_fetched_while_the_device_computes() -> None:
    """Two requests: the second one's embeddings travel during the first one's denoising."""
    network = replace(QUIET, bandwidth=1e7)
    servers = (ServerSetup("enc", FLUX, frozenset({Role.ENCODER})), ServerSetup("rest", FLUX))
    scenario = replace(quiet(*[Arrival(1.0, PICTURE)] * 2, network=network), servers=servers)
    policies = Policies()
    result = simulate(scenario, policies)
    travel = sum(FLUX.output_bytes(Role.ENCODER, 1024, 1024).values()) / 1e7
    one_by_one = 2 * (ENCODE + 10 * STEP + DECODE + travel)
    assert max(result.latencies()) < one_by_one - 0.5 * travel


def test_progress_is_reported_at_most_twice_a_second() -> None:
    diary = Diary()
    simulate(quiet(Arrival(1.0, replace(PICTURE, steps=50))), Policies(), watchers=[diary])
    reports = diary.times(ev.JobProgressed)
    assert len(reports) == 12
    assert all(b - a >= 0.5 for a, b in pairwise(reports))


def test_a_server_that_slows_down_does_so_from_its_next_step_on() -> None:
    faults = (SlowDown(1.0 + ENCODE + 2.5 * STEP, "s0", 3.0),)
    result = simulate(quiet(Arrival(1.0, PICTURE), faults=faults), Policies())
    assert result.latencies()[0] == pytest.approx(ENCODE + (3 + 3 * 7) * STEP + 3 * DECODE, rel=1e-3)


def test_cancellation_frees_the_device_within_a_step() -> None:
    diary = Diary()
    impatient = replace(PICTURE, patience=ENCODE + 4.5 * STEP)
    result = simulate(quiet(Arrival(1.0, impatient), Arrival(1.1, PICTURE)), Policies(), watchers=[diary])
    (cancelled,) = diary.times(ev.JobCancelled)
    assert cancelled == pytest.approx(1.0 + ENCODE + 5 * STEP, abs=0.01)
    assert [request.end for request in result.requests] == [End.CANCELLED, End.FINISHED]


SMALL = Kind("512", 512, 512, 10)
SMALL_STEP = 0.0072693 + 1024 * 2.65639e-5 + 1024**2 * 7.10762e-10


def sharing(*arrivals: Arrival, joins_at: float = 0.0) -> list[Timings]:
    """Of dit jobs, as they end, on the one server for them: up to four compute together."""
    diary = Diary()
    dit = ServerSetup("dit", FLUX, frozenset({Role.DIT}), joins_at=joins_at, together=8)
    rest = ServerSetup("rest", FLUX, frozenset({Role.ENCODER, Role.DECODER}))
    scenario = replace(quiet(*arrivals), servers=(rest, dit))
    simulate(scenario, Policies(batching=Together(), placement=Downstream(0.0)), watchers=[diary])
    return [event.timings for _, event in diary.events if isinstance(event, ev.JobDone) and event.timings.steps]


def test_company_costs_what_the_profile_says() -> None:
    """The dit server comes late, and finds four jobs waiting; the first doesn't wait for the others' inputs."""
    timings = sharing(*[Arrival(1.0, SMALL)] * 4, joins_at=5.0)
    assert [each.batch for each in timings] == [(1 + 9 * 4) / 10, *[(9 * 4 + 3) / 10] * 3]
    assert timings[0].compute == pytest.approx(SMALL_STEP * (1 + 9 * (1 + 3 * 0.55)), rel=1e-6)


def test_a_job_joins_others_at_the_end_of_a_step_and_each_leaves_after_its_last() -> None:
    late = Arrival(1.0 + 2.5 * SMALL_STEP, replace(SMALL, steps=20))
    first, second = sharing(Arrival(1.0, SMALL), late)
    assert (first.batch, second.batch) == ((3 + 7 * 2) / 10, (7 * 2 + 13) / 20)
    assert first.compute == pytest.approx(SMALL_STEP * (3 + 7 * 1.55), rel=1e-6)
    assert second.compute == pytest.approx(SMALL_STEP * (7 * 1.55 + 13), rel=1e-6)


def test_exact_requests_have_the_device_alone() -> None:
    timings = sharing(*[Arrival(1.0, replace(SMALL, exact=True))] * 2, Arrival(1.0, SMALL))
    assert [each.batch for each in timings] == [1] * 3


@pytest.mark.parametrize(("keep_seconds", "pauses"), [(0.0, 2), (0.05, 1)])
def test_an_urgent_job_takes_the_device_at_the_end_of_a_step_and_the_other_resumes(
    keep_seconds: float, pauses: int
) -> None:
    """Unless the device is kept for it, it has to take it once more for its decoder job."""
    diary = Diary()
    long, short = replace(PICTURE, steps=100), replace(PICTURE, steps=1)
    servers = (
        ServerSetup("enc", FLUX, frozenset({Role.ENCODER})),
        ServerSetup("rest", FLUX, frozenset({Role.DIT, Role.DECODER})),
    )
    scenario = replace(quiet(Arrival(1.0, long), Arrival(3.0, short)), servers=servers)
    result = simulate(scenario, Policies(preemption=Impatient(keep_seconds)), watchers=[diary])
    assert len(diary.times(ev.JobPaused)) == pauses
    first, second = sorted(result.latencies())
    assert first == pytest.approx(ENCODE + STEP + DECODE, abs=2 * STEP)
    assert second == pytest.approx(ENCODE + 100 * STEP + DECODE + STEP + DECODE, rel=0.01)


# --- the device -------------------------------------------------------------------------------------------------------


class Ends:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.log: list[tuple[str, float]] = []

    def started(self, task: Task) -> None:
        self.log.append((f"start {task.steps}", self.clock.now))

    def paused(self, task: Task) -> None:
        self.log.append((f"pause {task.steps} at {task.step}", self.clock.now))

    def progressed(self, task: Task, step_seconds: float) -> None: ...

    def stopped(self, task: Task) -> None:
        self.log.append((f"stop {task.steps} at {task.step}", self.clock.now))

    def ended(self, task: Task) -> None:
        self.log.append((f"end {task.steps}", self.clock.now))

    def busy(self, task: Task, since: float) -> None: ...


def play(*moves: tuple[float, Callable[[Device], None]]) -> list[tuple[str, float]]:
    clock = Clock()
    ends = Ends(clock)
    device = Device(clock, clock.after, ends)
    for at, move in moves:
        clock.at(at, move, device)
    while clock.step():
        pass
    return [(what, round(at, 6)) for what, at in ends.log]


def test_the_device_serves_in_order_of_arrival() -> None:
    moves = [(0.0, lambda d: d.line_up(Task(3, 1.0))), (0.5, lambda d: d.line_up(Task(2, 1.0)))]
    assert play(*moves) == [("start 3", 0.0), ("end 3", 3.0), ("start 2", 3.0), ("end 2", 5.0)]


def test_the_urgent_interrupts_and_is_not_interrupted() -> None:
    moves = [
        (0.0, lambda d: d.line_up(Task(10, 1.0))),
        (1.5, lambda d: d.line_up(Task(3, 1.0, urgent=True))),
        (2.5, lambda d: d.line_up(Task(1, 1.0, urgent=True))),
    ]
    assert play(*moves) == [
        ("start 10", 0.0),
        ("pause 10 at 2", 2.0),
        ("start 3", 2.0),
        ("end 3", 5.0),
        ("start 1", 5.0),
        ("end 1", 6.0),
        ("start 10", 6.0),
        ("end 10", 14.0),
    ]


def test_stopping_a_task() -> None:
    tasks = Task(10, 1.0), Task(5, 1.0)
    moves: list[tuple[float, Callable[[Device], None]]] = [
        (0.0, lambda d: d.line_up(tasks[0])),
        (0.0, lambda d: d.line_up(tasks[1])),
        (1.2, lambda d: d.stop(tasks[1])),
        (2.5, lambda d: d.stop(tasks[0])),
    ]
    assert play(*moves) == [("start 10", 0.0), ("stop 5 at 0", 1.2), ("stop 10 at 3", 3.0)]


def test_a_task_that_ended_keeps_the_device_for_the_urgent() -> None:
    moves = [
        (0.0, lambda d: d.line_up(Task(10, 1.0))),
        (0.5, lambda d: d.line_up(Task(1, 1.0, urgent=True, keep_seconds=0.5))),
        (2.1, lambda d: d.line_up(Task(2, 0.1))),
        (2.2, lambda d: d.line_up(Task(3, 1.0, urgent=True, keep_seconds=0.5))),
    ]
    assert play(*moves)[3:] == [
        ("end 1", 2.0),
        ("start 3", 2.2),
        ("end 3", 5.2),
        ("start 10", 5.7),
        ("end 10", 14.7),
        ("start 2", 14.7),
        ("end 2", 14.9),
    ]


def test_a_task_keeps_the_device_until_it_is_released_at_most() -> None:
    keeper = Task(1, 1.0, urgent=True, keep_seconds=0.5)
    stopped = Task(5, 1.0, urgent=True, keep_seconds=0.5)
    moves: list[tuple[float, Callable[[Device], None]]] = [
        (0.0, lambda d: d.line_up(keeper)),
        (0.0, lambda d: d.line_up(Task(2, 1.0))),
        (1.1, lambda d: d.release(keeper)),
        (1.1, lambda d: d.line_up(stopped)),
        (2.5, lambda d: d.stop(stopped)),
    ]
    assert play(*moves) == [
        ("start 1", 0.0),
        ("end 1", 1.0),
        ("start 2", 1.1),
        ("pause 2 at 1", 2.1),
        ("start 5", 2.1),
        ("stop 5 at 1", 3.1),
        ("start 2", 3.1),
        ("end 2", 4.1),
    ]


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [Kill(2.0, "s0", restart_after=5.0), Kill(2.0, "s0"), Freeze(2.0, "s0", 8.0), Leave(2.0, "s0")]
)
def test_no_request_is_lost_by_a_fault(fault: Kill | Freeze | Leave) -> None:
    arrivals = [Arrival(1.0 + 0.2 * i, PICTURE) for i in range(10)]
    result = simulate(quiet(*arrivals, servers=2, faults=(fault,)), Policies())
    assert result.count(End.FINISHED) == 10
    encoded = result.attempts[Role.ENCODER]
    assert encoded <= 13  # what was lost on the way, and nothing else


EVERYBODY = frozenset({"everybody"})


@pytest.mark.parametrize(
    "faults",
    [
        (Unreachable(0.0, "d1", EVERYBODY),),
        (Unreachable(4.0, "d1", EVERYBODY),),
        (Unreachable(4.0, "d1", EVERYBODY, until=9.0), Unreachable(15.0, "d2", EVERYBODY, until=20.0)),
        (Unreachable(4.0, "v1", frozenset({"gateway"})),),
        (Unreachable(4.0, "e1", frozenset({"d1"})),),
        tuple(Unreachable(4.0, holder, frozenset({"v1"})) for holder in ("d1", "d2", "e1")),
        tuple(Unreachable(4.0, holder, frozenset({"d1"})) for holder in ("e1", "e2", "d2")),
    ],
    ids=["from the start", "later", "one after the other", "gateway", "one pair", "a decoder cut off", "a dit cut off"],
)
def test_no_request_fails_while_somebody_who_can_be_reached_holds_the_role(faults: tuple[Unreachable, ...]) -> None:
    roles = {"e": Role.ENCODER, "d": Role.DIT, "v": Role.DECODER}
    servers = tuple(ServerSetup(f"{letter}{i}", FLUX, frozenset({roles[letter]})) for letter in roles for i in (1, 2))
    arrivals = [Arrival(1.0 + 0.75 * i, PICTURE) for i in range(40)]
    scenario = replace(quiet(*arrivals), servers=servers, faults=faults, network=Network())
    result = simulate(scenario, Policies())
    assert result.count(End.FINISHED) == 40
    assert sum(result.attempts.values()) <= 3 * 40 + 12  # what was lost at the moment of a fault, and little else


def test_work_comes_back_with_the_connection() -> None:
    diary = Diary()
    servers = (
        ServerSetup("rest", FLUX, frozenset({Role.ENCODER, Role.DECODER})),
        ServerSetup("dit", FLUX, frozenset({Role.DIT})),
    )
    faults = (Unreachable(0.0, "dit", EVERYBODY, until=20.0),)
    scenario = replace(quiet(Arrival(1.0, PICTURE)), servers=servers, faults=faults, network=Network())
    result = simulate(scenario, Policies(), watchers=[diary])
    asides = [(at, action.roles) for at, action in diary.actions if isinstance(action, do.SetAside)]
    assert [(roles, at < 3.0, 20.0 < at < 50.0) for at, roles in asides] == [
        (frozenset(REQUIRED), True, False),
        (frozenset(), False, True),
    ]
    assert result.count(End.FINISHED) == 1
    assert not [event for _, event in diary.events if isinstance(event, ev.JobFailed)]


def test_a_full_store_holds_work_back_and_loses_nothing() -> None:
    arrivals = [Arrival(1.0, PICTURE)] * 12
    size = sum(FLUX.output_bytes(Role.ENCODER, 2048, 2048).values())
    scenario = quiet(*arrivals)
    setup = replace(scenario.servers[0], store_bytes=5 * size)
    diary = Diary()
    simulation = Simulation(replace(scenario, servers=(setup,)), Policies(), watchers=[diary])
    simulation.run()
    assert sum(isinstance(action, do.Finish) for _, action in diary.actions) == 12


@pytest.mark.services
def test_a_role_change_drains_and_takes_the_load_time() -> None:
    """From drawing to edits with much to encode; what is loaded comes out of files, or out of host memory."""
    servers = with_best_roles(fleet("qwen-image-4090-offload", 4), Phase(1, mix_of(Kind("8", steps=8))))
    edits = at_load(0.8, servers, Phase(1500, mix_of(Kind("edit", steps=1, image_pixels=2**26))))
    scenario = Scenario("shift", servers, Workload((edits,)))
    diary = Diary()
    result = simulate(scenario, named("elastic", scenario), watchers=[diary])
    switches = [event for _, event in diary.events if isinstance(event, ev.RolesReady)]
    assert switches
    profile = servers[0].profile.roles
    swap, bandwidth = servers[0].swap_seconds, servers[0].host_bandwidth
    longest = sum(part.load_seconds for part in profile.values()) + swap
    copied = sum(part.weights_bytes for part in profile.values()) / bandwidth + swap
    assert {event.from_host for event in switches} == {True}
    assert all(swap <= event.load_seconds <= (copied if event.from_host else longest) for event in switches)
    assert result.lost() == 0


# --- workloads and bounds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cv", [0.0, 1.0, 3.0])
def test_arrival_rates_and_their_variation(cv: float) -> None:
    workload = Workload((Phase(2000, mix_of(PICTURE), rate=2.0, cv=cv),))
    times = [arrival.at for arrival in workload.arrivals(Random(1))]
    gaps = [b - a for a, b in pairwise(times)]
    average = mean(gaps)
    assert len(times) == pytest.approx(4000, rel=0.1)
    assert (mean((gap - average) ** 2 for gap in gaps)) ** 0.5 / average == pytest.approx(cv, abs=0.3)


def test_a_swinging_rate() -> None:
    phase = Phase(1000, mix_of(PICTURE), rate=2.0, swing=0.9, period=1000)
    times = list(phase.arrivals(Random(1)))
    first_half = sum(at < 500 for at in times)
    assert first_half > 2.5 * (len(times) - first_half)
    assert len(times) == pytest.approx(2000, rel=0.1)


def test_every_workload_of_the_suite_can_be_made() -> None:
    for name, make in SUITE.items():
        scenario = make()
        assert all(phase.rate > 0 for phase in scenario.workload.phases), name
        assert static_rate(scenario.servers, scenario.workload.phases[0]) > 0, name


def test_a_backlog_comes_close_to_the_fluid_bound_and_not_above() -> None:
    base = SUITE["stationary"]()
    scenario = backlog(base, 300)
    result = simulate(scenario, named("first-come", scenario))
    bound = fluid_rate(scenario.servers, scenario.workload.phases[0])
    assert 0.97 * bound < result.throughput(30, 300) < 1.01 * bound


def test_the_bound_knows_classes_and_batches() -> None:
    phase = Phase(1, mix_of(Kind("512", 512, 512, 20)))
    fast, slow = fleet(FLUX, 2, "a"), fleet(scaled(FLUX, 2.0, "slow"), 2, "b")
    assert fluid_rate([*fast, *slow], phase) == pytest.approx(1.5 * fluid_rate(fast, phase), rel=1e-3)
    assert fluid_rate(fast, phase, max_batch=4) > 1.3 * fluid_rate(fast, phase)
    assert at_load(0.5, fast, phase).rate == pytest.approx(0.5 * fluid_rate(fast, phase))


def test_arrivals_and_costs_do_not_depend_on_the_policies() -> None:
    phase = at_load(0.8, fleet(FLUX, 2), Phase(60, mix_of(PICTURE, Kind("512", 512, 512, 20))))
    scenario = Scenario("pair", with_best_roles(fleet(FLUX, 2), phase), Workload((phase,)), noise=0.2)
    one, other = (simulate(scenario, named(name, scenario), seed=3) for name in ("first-come", "elastic"))
    assert [(r.arrived, r.kind) for r in one.requests] == [(r.arrived, r.kind) for r in other.requests]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"servers": ()}, "at least one server"),
        ({"servers": (ServerSetup("a", FLUX), ServerSetup("a", FLUX))}, "same name"),
        ({"faults": (Leave(1.0, "x"),)}, "does not have: x"),
        ({"servers": (ServerSetup("a", FLUX, memory_bytes=10**9),)}, "do not fit"),
        ({"servers": (ServerSetup("a", FLUX), ServerSetup("b", bundled_profile("sd3-l20")))}, "names no model"),
    ],
)
def test_impossible_scenarios_are_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(quiet(Arrival(1.0, PICTURE)), **change)

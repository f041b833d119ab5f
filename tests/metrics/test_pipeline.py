"""What the scheduler's events and actions add to the metrics, and what is read off its state at a scrape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from gateway.metrics.fleet import Fleet
from gateway.metrics.instruments import Instruments
from gateway.metrics.pipeline import PipelineCounts
from scheduler import actions as act
from scheduler import events as ev
from scheduler.cost.work import Work
from scheduler.elastic.suspects import Suspects
from scheduler.roles.problem import Duty, Problem
from scheduler.roles.solver import Plan
from scheduler.spec import Input, JobSpec, Made, Output, RequestSpec
from tests.admin.conftest import Desk
from wire.to_gateway import Heartbeat
from wire.types import REQUIRED, Epoch, Handle, JobId, ModelKey, RequestId, Role, ServerId

A, B = ServerId("a/1"), ServerId("b/1")
E = Epoch("g", 1)
WHY = {"cause": 1, "reason": "as the test says"}
HANDLE = Handle("h")
FROM_B, FROM_A = Input(HANDLE, B, 700), Input(HANDLE, A, 900)
RUN = act.Run(**WHY, server=A, role=Role.DIT, job=JobId("r/dit"), epoch=E, inputs=(FROM_B, FROM_A), deadline=9)
FETCH = act.FetchResult(**WHY, request=RequestId("r"), job=JobId("r/decoder"), source=FROM_B)
REJECT = act.Reject(**WHY, request=RequestId("r"), retry_after_seconds=1, predicted_seconds=2, code="deadline")
TICK = ev.Tick()


def arrived(made: Made | None) -> ev.RequestArrived:
    encoder = JobSpec(JobId("r/encoder"), Role.ENCODER, Work(Role.ENCODER), made=made)
    decoder = JobSpec(JobId("r/decoder"), Role.DECODER, Work(Role.DECODER, height=64, width=64), (encoder.id,))
    return ev.RequestArrived(RequestSpec(RequestId("r"), ModelKey("m@1"), (encoder, decoder), 9.0))


def failed(code: str, *handles: Handle, unreached: tuple[Handle, ...] = ()) -> ev.JobFailed:
    return ev.JobFailed(A, E, code, "why", retryable=True, lost_inputs=handles, unreached=unreached)


@pytest.mark.parametrize(
    ("event", "actions", "changes"),
    [
        (TICK, [act.Admit(**WHY, request=RequestId("r"), predicted_seconds=1)],
         {'disagfusion_admissions_total{decision="admitted",reason=""}': 1}),
        (TICK, [REJECT], {'disagfusion_admissions_total{decision="rejected",reason="deadline"}': 1}),
        (arrived(None), [], {'disagfusion_encodings_total{result="miss"}': 1}),
        (arrived(Made(A, (Output("dit", HANDLE, 5),))), [], {'disagfusion_encodings_total{result="hit"}': 1}),
        (TICK, [RUN], {'disagfusion_transfers_total{reader="dit"}': 1,
                       'disagfusion_transfer_bytes_total{reader="dit"}': 700}),
        (TICK, [FETCH], {'disagfusion_transfers_total{reader="gateway"}': 1,
                         'disagfusion_transfer_bytes_total{reader="gateway"}': 700}),
        (failed("engine_error"), [], {'disagfusion_job_failures_total{code="engine_error"}': 1}),
        (failed("of tomorrow"), [], {'disagfusion_job_failures_total{code="other"}': 1}),
        (failed("input_lost", HANDLE, Handle("i"), unreached=(HANDLE,)), [],
         {'disagfusion_job_failures_total{code="input_lost"}': 1,
          'disagfusion_transfer_failures_total{reason="lost"}': 1,
          'disagfusion_transfer_failures_total{reason="unreached"}': 1}),
        (ev.ResultLost(JobId("r/decoder"), HANDLE), [], {'disagfusion_transfer_failures_total{reason="lost"}': 1}),
        (ev.ResultLost(JobId("r/decoder"), HANDLE, unreached=True), [],
         {'disagfusion_transfer_failures_total{reason="unreached"}': 1}),
        (ev.JobPaused(A, E, 3), [], {"disagfusion_job_pauses_total": 1}),
        (ev.JobHandedOver(A, E, 3, None), [], {"disagfusion_job_handovers_total": 1}),
        (ev.ServerLost(A, "gone"), [], {'disagfusion_server_events_total{event="lost"}': 1}),
        (ev.ServerLeaving(A), [], {'disagfusion_server_events_total{event="leaving"}': 1}),
        (ev.RolesReady(A, E, frozenset((Role.DIT,)), 4.0), [],
         {'disagfusion_role_moves_total{outcome="done"}': 1,
          'disagfusion_role_move_seconds_sum{source="files"}': 4.0,
          'disagfusion_role_move_seconds_count{source="files"}': 1}),
        (ev.RolesReady(A, E, frozenset((Role.DIT,)), 0.5, from_host=True), [],
         {'disagfusion_role_moves_total{outcome="done"}': 1,
          'disagfusion_role_move_seconds_sum{source="host memory"}': 0.5,
          'disagfusion_role_move_seconds_count{source="host memory"}': 1}),
        (ev.RolesFailed(A, E, frozenset(), "no memory"), [], {'disagfusion_role_moves_total{outcome="failed"}': 1}),
    ],
)  # fmt: skip
def test_what_an_event_adds(event: ev.Event, actions: list[act.Action], changes: Mapping[str, float]) -> None:
    instruments = Instruments()
    before = told(instruments.registry)
    PipelineCounts(instruments).note(event, actions)
    after = told(instruments.registry)
    assert {
        name: after[name] - before.get(name, 0.0) for name in after if after[name] != before.get(name, 0.0)
    } == changes


def told(registry: CollectorRegistry) -> dict[str, float]:
    """Samples of ours, those of buckets and creation times left out."""
    found = {}
    for family in registry.collect():
        for sample in family.samples:
            if sample.name.startswith("disagfusion_") and not sample.name.endswith(("_bucket", "_created")):
                labels = ",".join(f'{name}="{text}"' for name, text in sample.labels.items())
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


BEAT = Heartbeat(
    sequence=1,
    store_bytes=7,
    store_capacity=100,
    device_memory_bytes=50,
    blocked=(Role.DIT,),
    device_busy_seconds=12.5,
    temperature_celsius=61.0,
    power_watts=350.0,
)


def scraped(desk: Desk, beat: Heartbeat = BEAT) -> dict[str, float]:
    registry = CollectorRegistry()
    vitals = lambda: dict.fromkeys(desk.scheduler.view.servers, beat)  # noqa: E731
    ready = lambda: bool(desk.scheduler.view.servers)  # noqa: E731
    registry.register(Fleet(desk.scheduler.view, desk.decisions, desk.chosen.suspects, vitals, ready))
    return told(registry)


def test_what_a_scrape_reads_of_servers() -> None:
    desk = Desk()
    assert scraped(desk) == {"disagfusion_ready": 0}
    server = desk.join("a", Role.ENCODER, Role.DIT)
    seen = scraped(desk)
    assert seen["disagfusion_ready"] == 1
    assert seen['disagfusion_server_info{server="a",model="m",device_class="cpu-1"}'] == 1
    assert [seen.get(f'disagfusion_server_role{{server="a",stage="{role}"}}') for role in REQUIRED] == [1, 1, None]
    assert [seen[f'disagfusion_servers{{model="m",stage="{role}"}}'] for role in REQUIRED] == [1, 1, 0]
    assert [seen[f'disagfusion_servers_wanted{{model="m",stage="{role}"}}'] for role in REQUIRED] == [1, 1, 0]
    for name, figure in {
        "busy_seconds_total": 12.5,
        "store_bytes": 7,
        "store_capacity_bytes": 100,
        "store_blocked_roles": 1,
        "memory_bytes": 50,
        "memory_capacity_bytes": 1000,
        "temperature_celsius": 61,
        "power_watts": 350,
        "jobs": 0,
        "suspect": 0,
        "set_aside": 0,
        "leaving": 0,
        "slowness_ratio": 1,
    }.items():
        assert seen[f'disagfusion_server_{name}{{server="a"}}'] == figure, name
    desk.tell(ev.ServerLeaving(server))
    assert scraped(desk)['disagfusion_server_leaving{server="a"}'] == 1
    desk.tell(ev.ServerLost(server, "gone"))
    assert not [name for name in scraped(desk) if "server" in name]


def test_what_an_older_server_does_not_say_is_left_out() -> None:
    desk = Desk()
    desk.join("a", Role.DIT)
    seen = scraped(desk, Heartbeat(sequence=1, store_capacity=100))
    for name in ("busy_seconds_total", "temperature_celsius", "power_watts"):
        assert f'disagfusion_server_{name}{{server="a"}}' not in seen


def test_waiting_work() -> None:
    """Without a server whose cost is known nothing has a price."""
    desk = Desk()
    desk.join("a", Role.DIT)
    desk.ask("one")
    desk.ask("two")
    seen = scraped(desk)
    assert [seen[f'disagfusion_queue_length{{model="m",stage="{role}"}}'] for role in REQUIRED] == [2, 0, 0]
    assert all(seen[f'disagfusion_backlog_seconds{{model="m",stage="{role}"}}'] > 0 for role in REQUIRED)


def test_two_revisions_of_one_name_are_one_series() -> None:
    """Prometheus refuses a scrape that has a series twice."""
    desk = Desk()
    server = desk.join("a", Role.DIT)
    newer = replace(desk.scheduler.view.servers[server].spec, id=B, name="b", model=ModelKey("m@2"))
    desk.tell(ev.ServerJoined(newer, dict.fromkeys(REQUIRED, 10)))
    assert scraped(desk)['disagfusion_servers{model="m",stage="dit"}'] == 2


def test_a_suspect_server() -> None:
    desk = Desk()
    desk.join("a", *REQUIRED)
    desk.join("b", *REQUIRED)
    desk.chosen = replace(desk.chosen, suspects=Suspecting())
    assert [scraped(desk)[f'disagfusion_server_suspect{{server="{name}"}}'] for name in "ab"] == [1, 0]


class Suspecting(Suspects):
    def __init__(self) -> None:
        super().__init__(3, 60.0)

    def is_suspect(self, server: ServerId) -> bool:
        return server.startswith("a/")


def test_wanted_servers_are_those_of_the_latest_plan() -> None:
    desk = Desk()
    server = desk.join("a", Role.DIT)
    problem = Problem(classes={}, servers=(), demand={Role.DIT: 1.0})
    assigned = {server: frozenset((Role.ENCODER, Duty(ModelKey("other@1"), Role.DIT)))}
    desk.decisions.note(ev.PlanReady(Plan(assigned, 1.0, 1.0, 1.0, problem)), [], 0.0)
    seen = scraped(desk)
    assert [seen[f'disagfusion_servers_wanted{{model="m",stage="{role}"}}'] for role in REQUIRED] == [1, 0, 0]

"""The pipeline as it stands, read off the scheduler's view and the servers' heartbeats when somebody scrapes.

Requests pay nothing for these. Series of servers that are gone, or of models without servers and work, go with them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.service.decisions import Decisions
from scheduler.elastic.suspects import Suspects
from scheduler.roles.problem import Duty
from scheduler.scaling.records import PoolOrder
from scheduler.state import Server
from scheduler.transitions import JobState
from scheduler.view import Station, View
from wire.to_gateway import Heartbeat
from wire.types import ModelKey, Role, ServerId

Figures = Mapping[tuple[str, ...], float]
"""Values by labels."""

HEARTBEAT_GAUGES: Sequence[tuple[str, str, Callable[[Heartbeat], float | None]]] = (
    ("disagfusion_server_store_bytes", "Outputs in its store.", lambda beat: beat.store_bytes),
    ("disagfusion_server_store_capacity_bytes", "Room of its output store.", lambda beat: beat.store_capacity or None),
    (
        "disagfusion_server_store_blocked_roles",
        "Roles that get no work because its store has no room for another output.",
        lambda beat: len(beat.blocked),
    ),
    ("disagfusion_server_memory_bytes", "Peak use of its device's memory.", lambda beat: beat.device_memory_bytes),
    (
        "disagfusion_server_temperature_celsius",
        "Of its device, where NVML tells.",
        lambda beat: beat.temperature_celsius,
    ),
    ("disagfusion_server_power_watts", "Drawn by its device, where NVML tells.", lambda beat: beat.power_watts),
)


@dataclass(frozen=True, slots=True, eq=False)
class Fleet(Collector):
    view: View
    decisions: Decisions
    suspects: Suspects
    vitals: Callable[[], Mapping[ServerId, Heartbeat]]
    ready: Callable[[], bool]
    pools: Callable[[], Sequence[PoolOrder]] = tuple
    """What the autoscaler decided last."""

    def collect(self) -> Iterator[Metric]:
        yield _gauge("disagfusion_ready", "1 while every role of some model is held.", (), {(): self.ready()})
        yield from self._stages()
        yield from self._pools()
        yield from self._servers()
        yield from self._devices()

    def labels(self) -> Mapping[str, Sequence[str]]:
        """By name, of all of them."""
        return {told_name(family): family._labelnames for family in self.collect()}  # type: ignore[attr-defined]

    def describe(self) -> Iterable[Metric]:
        """Names alone, for the registry and the documentation."""
        return self.collect()

    # --- stages -------------------------------------------------------------------------------------------------------

    def _stages(self) -> Iterator[Metric]:
        stations = self._stations()
        backlog = self._backlog()
        wanted = self._wanted()
        labels = ("model", "stage")
        yield _gauge(
            "disagfusion_queue_length",
            "Jobs whose inputs exist and that no server has, per stage.",
            labels,
            _by_name((at, self.view.waiting(*at)) for at in stations),
        )
        yield _gauge(
            "disagfusion_backlog_seconds",
            "Predicted device time of the jobs of admitted requests that no server has yet, per stage, on the model's "
            "reference device.",
            labels,
            _by_name((at, backlog.get(at, 0.0)) for at in stations),
        )
        yield _gauge(
            "disagfusion_servers",
            "Stage servers that get work of a stage.",
            labels,
            _by_name((at, len(self.view.serving(*at))) for at in stations),
        )
        yield _gauge(
            "disagfusion_servers_wanted",
            "Stage servers that the latest plan gives a stage; without a plan, those that hold it or are about to.",
            labels,
            _by_name((at, wanted[at]) for at in stations),
        )

    def _pools(self) -> Iterator[Metric]:
        orders = self.pools()
        yield _gauge(
            "disagfusion_pool_servers_wanted",
            "Stage servers that a pool shall have, those on their way among them.",
            ("pool",),
            {(order.pool.name,): order.wanted for order in orders},
        )
        yield _gauge(
            "disagfusion_pool_servers",
            "Stage servers of a pool: here to stay (ready), asked for and on their way (starting), to go (draining).",
            ("pool", "state"),
            {
                (order.pool.name, state): count
                for order in orders
                for state, count in (
                    ("ready", order.ready),
                    ("starting", order.starting),
                    ("draining", len(order.drain)),
                )
            },
        )
        yield _gauge(
            "disagfusion_pool_cold_start_seconds",
            "From the order for a server of a pool to its introduction, mean of the latest; assumed until measured.",
            ("pool",),
            {(order.pool.name,): order.cold_start_seconds for order in orders},
        )

    def _stations(self) -> list[Station]:
        models = {server.spec.model for server in self.view.servers.values()}
        models |= {request.spec.model for request in self.view.live.values()}
        return [(model, role) for model in sorted(models) for role in self.view.stages(model)]

    def _backlog(self) -> Mapping[Station, float]:
        seconds: defaultdict[Station, float] = defaultdict(float)
        for job in self.view.jobs.values():
            if job.state is JobState.WAITING and not job.spec.optional:
                seconds[job.request.spec.model, job.spec.role] += self.view.reference_seconds(job)
        return seconds

    def _wanted(self) -> Counter[Station]:
        plan = self.decisions.plan[1].plan if self.decisions.plan is not None else None
        wanted: Counter[Station] = Counter()
        for server in self.view.servers.values():
            coming = server.switching[1] if server.switching is not None else server.roles
            stages = plan.assignment.get(server.id) if plan is not None else None
            for stage in coming if stages is None else stages:
                duty = stage if isinstance(stage, Duty) else Duty(server.spec.model, stage)
                wanted[duty.model, duty.role] += 1
        return wanted

    # --- servers ------------------------------------------------------------------------------------------------------

    def _servers(self) -> Iterator[Metric]:
        servers = list(self.view.servers.values())
        yield _gauge(
            "disagfusion_server_info",
            "1 for every stage server that is here.",
            ("server", "model", "device_class"),
            {(each.spec.name, _name(each.spec.model), each.spec.device_class): 1 for each in servers},
        )
        yield _gauge(
            "disagfusion_server_role",
            "1 for every role that a stage server holds.",
            ("server", "stage"),
            {(each.spec.name, role.value): 1 for each in servers for role in Role if role in each.roles},
        )
        yield self._per_server("disagfusion_server_jobs", "Jobs that a stage server has.", lambda it: len(it.attempts))
        yield self._per_server(
            "disagfusion_server_suspect",
            "1 for a stage server that failed too many jobs in a row and is on probation.",
            lambda it: self.suspects.is_suspect(it.id),
        )
        yield self._per_server(
            "disagfusion_server_set_aside",
            "1 for a stage server that gets no work of some role because it and others do not reach each other.",
            lambda it: bool(it.aside),
        )
        yield self._per_server(
            "disagfusion_server_leaving", "1 for a stage server that takes no new work.", lambda it: it.is_leaving
        )
        yield self._per_server(
            "disagfusion_server_slowness_ratio",
            "Time that a stage server takes over the time that others of its class take, as learnt.",
            lambda it: self.view.cost.speed(it.spec.name),
        )
        yield self._per_server(
            "disagfusion_server_memory_capacity_bytes", "Memory of its device.", lambda it: it.spec.memory_bytes
        )

    def _per_server(self, name: str, text: str, value: Callable[[Server], float]) -> Metric:
        figures: Figures = {(it.spec.name,): value(it) for it in self.view.servers.values()}
        return _gauge(name, text, ("server",), figures)

    def _devices(self) -> Iterator[Metric]:
        told = self.vitals()
        beats = {(it.spec.name,): told[it.id] for it in self.view.servers.values() if it.id in told}
        busy = CounterMetricFamily(
            "disagfusion_server_busy_seconds_total",
            "Time for which its device was held by a job or a role change. Its rate is the busy share.",
            labels=("server",),
        )
        for labels, beat in beats.items():
            if beat.device_busy_seconds is not None:
                busy.add_metric(labels, beat.device_busy_seconds)
        yield busy
        for name, text, value in HEARTBEAT_GAUGES:
            figures: Figures = {labels: figure for labels, beat in beats.items() if (figure := value(beat)) is not None}
            yield _gauge(name, text, ("server",), figures)


def told_name(family: Metric) -> str:
    """As it is scraped."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def _gauge(name: str, text: str, labels: Sequence[str], figures: Figures) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, figure in figures.items():
        family.add_metric(values, figure)
    return family


def _by_name(figures: Iterable[tuple[Station, float]]) -> Figures:
    """Sums of models that have one name, as two revisions have while one replaces the other."""
    sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for (model, role), figure in figures:
        sums[_name(model), role.value] += figure
    return sums


def _name(model: ModelKey) -> str:
    """Without the digest, which is nothing to people."""
    return model.rpartition("@")[0] or model

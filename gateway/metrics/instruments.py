"""Every metric that is counted as it happens, in a registry of its own.

Labels are bounded: model names are those of models that were served, all others are words of ours.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from opentelemetry import trace
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 600)
SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 4)


class Family:
    """A metric whose children are looked up by their labels in one dictionary: a third of ``labels``' time."""

    def __init__(self, metric: Counter | Gauge | Histogram) -> None:
        self._metric = metric
        self._children: dict[tuple[str, ...], Any] = {}

    def __call__(self, *labels: str) -> Any:
        """The child itself: prometheus-client types its methods."""
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = self._metric.labels(*labels)
        return child


class Quick(Histogram):
    """Finds its bucket without looking at those before it: a request is observed fifteen times."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        if exemplar is not None:
            super().observe(amount, exemplar)
            return
        self._sum.inc(amount)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)


class Instruments:
    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.labels: dict[str, Sequence[str]] = {}
        """By name, of all that is below."""
        for own in (ProcessCollector, PlatformCollector, GCCollector):
            own(registry=self.registry)

        self.http_seconds = self._histogram(
            "http_server_request_duration_seconds",
            "Time from a request's arrival to the end of its answer. Routes are templates; empty where none took it.",
            ("http_request_method", "http_route", "http_response_status_code"),
        )
        self.http_active = self._gauge(
            "http_server_active_requests",
            "HTTP requests under way, streams among them.",
            ("http_request_method",),
        )
        self.generation_seconds = self._histogram(
            "gen_ai_server_request_duration_seconds",
            "Time of a generation or an edit from its arrival at the service to its pictures or its failure.",
            ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_response_model", "error_type"),
        )
        self.requests = self._counter(
            "disagfusion_requests_total",
            "Requests for pictures, by how they ended.",
            ("model", "outcome"),
        )
        self.pictures = self._counter("disagfusion_pictures_total", "Finished pictures.", ("model",))
        self.under_way = self._gauge(
            "disagfusion_requests_under_way", "Requests for pictures that are not over.", ("model",)
        )
        self.prediction = self._histogram(
            "disagfusion_prediction_error_ratio",
            "Actual time of a finished request over the time that was predicted at its admission.",
            ("model",),
            RATIOS,
        )
        self.stage_seconds = self._histogram(
            "disagfusion_stage_phase_seconds",
            "What the jobs of finished requests took: waiting (queue), reading inputs (fetch), computing (compute), "
            "storing the output (publish).",
            ("model", "stage", "phase"),
        )
        self.admissions = self._counter(
            "disagfusion_admissions_total", "Decisions about requests that arrived.", ("decision", "reason")
        )
        self.encodings = self._counter(
            "disagfusion_encodings_total",
            "Encoder jobs of requests that arrived: served by a kept encoding (hit), or to be computed (miss).",
            ("result",),
        )
        self.transfers = self._counter(
            "disagfusion_transfers_total",
            "Outputs that were to be read from another process, by who reads: a stage, or the gateway (pictures).",
            ("reader",),
        )
        self.transfer_bytes = self._counter("disagfusion_transfer_bytes_total", "The same in bytes.", ("reader",))
        self.transfer_failures = self._counter(
            "disagfusion_transfer_failures_total",
            "Outputs that could not be read: their holder did not have them (lost), or gave no answer (unreached).",
            ("reason",),
        )
        self.job_failures = self._counter(
            "disagfusion_job_failures_total", "Attempts that a stage server reported as failed.", ("code",)
        )
        self.preemptions = self._counter(
            "disagfusion_job_pauses_total", "Times that a job gave its device to a more urgent one.", ()
        )
        self.handovers = self._counter(
            "disagfusion_job_handovers_total", "Times that denoising ended on one server to go on elsewhere.", ()
        )
        self.servers = self._counter(
            "disagfusion_server_events_total", "Stage servers that joined, were lost or began to leave.", ("event",)
        )
        self.role_moves = self._counter(
            "disagfusion_role_moves_total", "Role changes of stage servers that are over.", ("outcome",)
        )
        self.role_move_seconds = self._histogram(
            "disagfusion_role_move_seconds",
            "Loading time of role changes, by where the weights came from: files, or host memory.",
            ("source",),
        )
        self.loop_lag = self._histogram(
            "disagfusion_event_loop_lag_seconds",
            "How late the gateway's event loop came to something that was due.",
            (),
            SHORT_SECONDS,
        )

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Any:
        return self._family(Counter(name, text, labels, registry=self.registry), name, labels)

    def _gauge(self, name: str, text: str, labels: Sequence[str]) -> Any:
        return self._family(Gauge(name, text, labels, registry=self.registry), name, labels)

    def _histogram(self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float] = SECONDS) -> Any:
        return self._family(Quick(name, text, labels, registry=self.registry, buckets=buckets), name, labels)

    def _family(self, metric: Counter | Gauge | Histogram, name: str, labels: Sequence[str]) -> Any:
        self.labels[name] = labels
        return Family(metric) if labels else metric


def exemplar() -> dict[str, str] | None:
    """The trace that this happens in, if it is recorded."""
    span = trace.get_current_span().get_span_context()
    if not (span.is_valid and span.trace_flags.sampled):
        return None
    return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}

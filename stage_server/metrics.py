"""A stage server's own ``/metrics``: counted from what it tells the gateway, so that both say the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from stage_server.command_line import InvalidSettings
from wire.to_gateway import (
    HandedOver,
    Heartbeat,
    Hello,
    RolesReady,
    StageCancelled,
    StageDone,
    StageFailed,
    Timings,
    ToGateway,
)
from wire.types import Role

_PHASES = ("wait", "fetch", "compute", "publish")
_OF_HEARTBEATS = {
    "store_bytes": "Outputs in the store.",
    "store_capacity_bytes": "Room of the store.",
    "memory_bytes": "Peak use of the device's memory.",
    "busy_seconds": "Time for which the device was held by a job or a role change. Its rate is the busy share.",
    "temperature_celsius": "Of the device, where NVML tells.",
    "power_watts": "Drawn by the device, where NVML tells.",
}


class Metrics:
    """Of all servers of a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._jobs = Counter(
            "disagfusion_stage_jobs",
            "Attempts that are over, by outcome.",
            ("model", "outcome"),
            registry=self.registry,
        )
        self._seconds = Counter(
            "disagfusion_stage_job_seconds",
            "What finished attempts took: waiting for the device, reading inputs, computing, storing the output.",
            ("model", "phase"),
            registry=self.registry,
        )
        self._role = Gauge(
            "disagfusion_stage_role", "1 for a role that is held.", ("model", "role"), registry=self.registry
        )
        self._of_heartbeats = {
            name: Gauge(f"disagfusion_stage_{name}", text, ("model",), registry=self.registry)
            for name, text in _OF_HEARTBEATS.items()
        }

    def note(self, model: str, message: ToGateway) -> None:
        """The server of ``model`` sends ``message``."""
        match message:
            case StageDone():
                self._jobs.labels(model, "done").inc()
                self._add(model, message.timings)
            case StageFailed():
                self._jobs.labels(model, "failed").inc()
            case StageCancelled():
                self._jobs.labels(model, "cancelled").inc()
            case HandedOver():
                self._jobs.labels(model, "handed over").inc()
            case Hello() | RolesReady():
                for role in Role:
                    self._role.labels(model, role.value).set(role in message.roles)
            case Heartbeat():
                self._beat(model, message)

    def _add(self, model: str, timings: Timings) -> None:
        for phase in _PHASES:
            self._seconds.labels(model, phase).inc(getattr(timings, phase))

    def _beat(self, model: str, beat: Heartbeat) -> None:
        values = {
            "store_bytes": beat.store_bytes,
            "store_capacity_bytes": beat.store_capacity,
            "memory_bytes": beat.device_memory_bytes,
            "busy_seconds": beat.device_busy_seconds,
            "temperature_celsius": beat.temperature_celsius,
            "power_watts": beat.power_watts,
        }
        for name, value in values.items():
            if value is not None:
                self._of_heartbeats[name].labels(model).set(value)


@contextmanager
def served(registry: CollectorRegistry, host: str, port: int) -> Iterator[str]:
    """At the url that it gives. Raises ``InvalidSettings`` where the port cannot be had."""
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise InvalidSettings(
            f"--metrics-port: {host}:{port} cannot be listened at: {error.strerror or error}; "
            "end what has it, or choose another port"
        ) from error
    shown = f"[{host}]" if ":" in host else host
    try:
        yield f"http://{shown}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""Grafana's dashboard, from the list of its panels.

python deploy/observability/dashboard.py > deploy/observability/grafana/dashboards/disagfusion.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

RATE = "[$__rate_interval]"
COLUMNS, WIDTH, HEIGHT = 3, 8, 8
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    """As Grafana names it."""
    query: str
    legend: str = ""
    stacked: bool = False


def quantile(share: float, histogram: str, *labels: str) -> str:
    return f"histogram_quantile({share}, sum by ({', '.join(('le', *labels))}) (rate({histogram}_bucket{RATE})))"


def mean(histogram: str, labels: str) -> str:
    return f"sum by ({labels}) (rate({histogram}_sum{RATE})) / (sum by ({labels}) (rate({histogram}_count{RATE})) > 0)"


DURATION = "gen_ai_server_request_duration_seconds"
PHASES = "disagfusion_stage_phase_seconds"
ERROR = "disagfusion_prediction_error_ratio"

PANELS = (
    Panel(
        "Requests by outcome",
        "reqps",
        f"sum by (outcome) (rate(disagfusion_requests_total{RATE}))",
        "{{outcome}}",
        True,
    ),
    Panel("Pictures", "ops", f"sum by (model) (rate(disagfusion_pictures_total{RATE}))", "{{model}}", True),
    Panel("Requests under way", "short", "sum by (model) (disagfusion_requests_under_way)", "{{model}}", True),
    Panel("Latency, median", "s", quantile(0.5, DURATION, "gen_ai_response_model"), "{{gen_ai_response_model}}"),
    Panel("Latency, p99", "s", quantile(0.99, DURATION, "gen_ai_response_model"), "{{gen_ai_response_model}}"),
    Panel("Actual over predicted time, median", "none", quantile(0.5, ERROR, "model"), "{{model}}"),
    Panel("Mean time per stage and phase", "s", mean(PHASES, "stage, phase"), "{{stage}} {{phase}}", True),
    Panel("Queue length", "short", "sum by (stage) (disagfusion_queue_length)", "{{stage}}", True),
    Panel("Predicted backlog", "s", "sum by (stage) (disagfusion_backlog_seconds)", "{{stage}}", True),
    Panel(
        "Busy share of each device", "percentunit", f"rate(disagfusion_server_busy_seconds_total{RATE})", "{{server}}"
    ),
    Panel("Servers per stage", "short", "sum by (model, stage) (disagfusion_servers)", "{{model}} {{stage}}"),
    Panel(
        "Servers wanted per stage", "short", "sum by (model, stage) (disagfusion_servers_wanted)", "{{model}} {{stage}}"
    ),
    Panel("Roles held", "short", "sum by (server, stage) (disagfusion_server_role)", "{{server}} {{stage}}", True),
    Panel(
        "Admission",
        "reqps",
        f"sum by (decision, reason) (rate(disagfusion_admissions_total{RATE}))",
        "{{decision}} {{reason}}",
    ),
    Panel("Encodings", "ops", f"sum by (result) (rate(disagfusion_encodings_total{RATE}))", "{{result}}", True),
    Panel(
        "Bytes handed over",
        "Bps",
        f"sum by (reader) (rate(disagfusion_transfer_bytes_total{RATE}))",
        "{{reader}}",
        True,
    ),
    Panel(
        "Store used",
        "percentunit",
        "disagfusion_server_store_bytes / disagfusion_server_store_capacity_bytes",
        "{{server}}",
    ),
    Panel(
        "Device memory used",
        "percentunit",
        "disagfusion_server_memory_bytes / disagfusion_server_memory_capacity_bytes",
        "{{server}}",
    ),
    Panel(
        "HTTP requests by status",
        "reqps",
        f"sum by (http_response_status_code) (rate(http_server_request_duration_seconds_count{RATE}))",
        "{{http_response_status_code}}",
        True,
    ),
    Panel("Event loop's lag, p99", "s", quantile(0.99, "disagfusion_event_loop_lag_seconds"), "lag"),
    Panel(
        "Gateway's processor", "percentunit", f'rate(process_cpu_seconds_total{{job="disagfusion"}}{RATE})', "gateway"
    ),
    Panel("Server events", "short", "disagfusion_server_events_total", "{{event}}"),
    # Empty while nothing of the kind has happened, or is measured: "or vector(0)" says so as a number.
    Panel("Role moves", "short", "sum by (outcome) (disagfusion_role_moves_total) or vector(0)", "{{outcome}}"),
    Panel("Failed attempts", "short", "sum by (code) (disagfusion_job_failures_total) or vector(0)", "{{code}}"),
    Panel(
        "Failed transfers", "short", "sum by (reason) (disagfusion_transfer_failures_total) or vector(0)", "{{reason}}"
    ),
    Panel("Temperature", "celsius", "disagfusion_server_temperature_celsius or vector(0)", "{{server}}"),
    Panel("Power", "watt", "disagfusion_server_power_watts or vector(0)", "{{server}}"),
)


def dashboard() -> dict[str, object]:
    return {
        "uid": "disagfusion",
        "title": "DisagFusion",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "panels": [_panel(number, panel) for number, panel in enumerate(PANELS)],
    }


def written(found: dict[str, object]) -> str:
    """A panel on each line, so that differences can be read."""
    panels = ",\n".join(map(json.dumps, found["panels"]))  # type: ignore[call-overload]
    return json.dumps(found | {"panels": []}).replace('"panels": []', f'"panels": [\n{panels}\n]') + "\n"


def _panel(number: int, panel: Panel) -> dict[str, object]:
    row, column = divmod(number, COLUMNS)
    stacking = {"stacking": {"mode": "normal"}, "fillOpacity": 30} if panel.stacked else {}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": DATASOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": stacking}, "overrides": []},
        "targets": [{"refId": "A", "expr": panel.query, "legendFormat": panel.legend, "exemplar": True}],
    }


if __name__ == "__main__":
    sys.stdout.write(written(dashboard()))

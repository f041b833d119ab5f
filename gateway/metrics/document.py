"""``python -m gateway.metrics.document > docs/metrics.md``: every metric, from the code that makes it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import Metric

from gateway.metrics.fleet import Fleet, told_name
from gateway.metrics.instruments import Instruments
from gateway.service.decisions import Decisions
from scheduler.elastic.build import elastic
from scheduler.view import View

HEAD = """# Metrics

The gateway serves these at `/metrics`, in Prometheus' text format or, where the scraper accepts it, OpenMetrics with
exemplars that name traces. One scrape shows the fleet: stage servers report through their heartbeats. How to switch it
off, give it a port or a key: [operating.md](operating.md#metrics).

Names of OpenTelemetry's semantic conventions are used where they exist. Units are in the names. A histogram has
`_bucket`, `_sum` and `_count`. What is counted begins at zero with every start of the gateway. `process_…`
and `python_…` are its process's own.

Over OTLP ([operating.md](operating.md#metrics-over-otlp)) they have the same names and labels, but for those of the
semantic conventions, which have dots there: `http.server.request.duration`, `http.server.active_requests` and
`gen_ai.server.request.duration`, with `http.request.method` and so on. Counts are cumulative sums, and exemplars come
along.

This file is made by `python -m gateway.metrics.document`; a test compares them.
"""


def document() -> str:
    return "\n".join((HEAD, *_tables()))


def _tables() -> Iterator[str]:
    instruments = Instruments()
    chosen = elastic()
    fleet = Fleet(View(chosen.policies.cost), Decisions(), chosen.suspects, dict, lambda: False)
    counted = [family for family in instruments.registry.collect() if told_name(family) in instruments.labels]
    yield "## Counted as it happens\n"
    yield from _table(_row(each, instruments.labels) for each in counted)
    yield "\n## Read at the scrape\n"
    labels = fleet.labels()
    yield from _table(_row(each, labels) for each in fleet.collect())
    yield ""


def _row(family: Metric, labels: Mapping[str, Sequence[str]]) -> tuple[str, str, Sequence[str], str]:
    return told_name(family), family.type, labels[told_name(family)], family.documentation


def _table(rows: Iterable[tuple[str, str, Sequence[str], str]]) -> Iterator[str]:
    yield "| metric | type | labels | |"
    yield "|---|---|---|---|"
    for name, kind, labels, text in rows:
        yield f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {text} |"


if __name__ == "__main__":
    sys.stdout.write(document())

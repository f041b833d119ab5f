"""What a scrape reads off a relay."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from stage_server.relay.relay import Relay


def registry(relay: Relay) -> CollectorRegistry:
    made = CollectorRegistry()
    made.register(_Read(relay))
    return made


class _Read(Collector):
    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def collect(self) -> Iterator[Metric]:
        relay, counts = self._relay, self._relay.counts
        yield GaugeMetricFamily(
            "disagfusion_relay_servers", "Stage servers that are reached through it.", len(relay.holders)
        )
        yield GaugeMetricFamily("disagfusion_relay_streams", "Connections that lead through it.", len(relay.streams))
        yield CounterMetricFamily("disagfusion_relay_streams_begun", "The same, since its start.", counts.streams)
        yield CounterMetricFamily("disagfusion_relay_bytes", "Copied, in both directions.", counts.nbytes)
        denied = CounterMetricFamily(
            "disagfusion_relay_denied", "Connections that came to nothing, by reason.", labels=("reason",)
        )
        for reason, number in counts.denied.items():
            denied.add_metric((reason.value,), number)
        yield denied

"""A stage server's own metrics: counted from its messages, and served at a port."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from stage_server.command_line import InvalidSettings
from stage_server.metrics import Metrics, served
from stage_server.settings import Settings, read_settings
from stage_server.startup import assembled
from wire.to_gateway import Heartbeat, RolesReady, StageCancelled, StageDone, StageFailed, Timings
from wire.types import REQUIRED, Epoch, Role

EPOCH = Epoch("g", 1)
OPTIONS = ("--role", "dit", "--engine", "emulated", "--profile", "flux.1-dev-h100", "--gateway", "tcp://127.0.0.1:1")


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def settings(*options: str) -> Settings:
    return read_settings([*OPTIONS, *options])


def test_what_a_server_says_is_counted() -> None:
    metrics = Metrics()
    metrics.note("m", RolesReady(epoch=EPOCH, roles=(Role.DIT,), load_seconds=1.0))
    metrics.note("m", StageDone(epoch=EPOCH, outputs=(), timings=Timings(wait=0.5, fetch=0.25, compute=2.0)))
    metrics.note("m", StageDone(epoch=EPOCH, outputs=(), timings=Timings(compute=1.0)))
    metrics.note("m", StageFailed(epoch=EPOCH, code="out_of_memory", message="", retryable=True))
    metrics.note("m", StageCancelled(epoch=EPOCH))
    metrics.note("m", Heartbeat(sequence=1, store_bytes=7, store_capacity=9, device_busy_seconds=3.5))
    value = metrics.registry.get_sample_value
    for outcome, count in {"done": 2, "failed": 1, "cancelled": 1}.items():
        assert value("disagfusion_stage_jobs_total", {"model": "m", "outcome": outcome}) == count
    for phase, seconds in {"wait": 0.5, "fetch": 0.25, "compute": 3.0, "publish": 0.0}.items():
        assert value("disagfusion_stage_job_seconds_total", {"model": "m", "phase": phase}) == seconds
    roles = {role: value("disagfusion_stage_role", {"model": "m", "role": role.value}) for role in REQUIRED}
    assert roles == {Role.ENCODER: 0, Role.DIT: 1, Role.DECODER: 0}
    assert value("disagfusion_stage_store_bytes", {"model": "m"}) == 7
    assert value("disagfusion_stage_busy_seconds", {"model": "m"}) == 3.5
    assert value("disagfusion_stage_power_watts", {"model": "m"}) is None, "nothing measures it"


def test_it_is_served_and_over_afterwards() -> None:
    metrics = Metrics()
    metrics.note("m", StageCancelled(epoch=EPOCH))
    with served(metrics.registry, "127.0.0.1", 0) as url:
        assert 'disagfusion_stage_jobs_total{model="m",outcome="cancelled"} 1.0' in httpx.get(url).text
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_taken_port_ends_the_start(taken: int) -> None:
    words = rf"--metrics-port: 127\.0\.0\.1:{taken} .*choose another port"
    with pytest.raises(InvalidSettings, match=words), assembled(settings("--metrics-port", str(taken))):
        pass


@pytest.mark.parametrize(
    ("bind", "host"),
    [("tcp://10.0.0.7:5601", "10.0.0.7"), ("tcp://*:*", "0.0.0.0"), ("tcp://[::1]:*", "::1")],  # noqa: S104 # not bound
)
def test_it_is_at_the_host_of_the_data_socket(bind: str, host: str) -> None:
    assert settings("--data-bind", bind, "--insecure").data_host() == host


def test_off_by_default() -> None:
    assert settings().metrics_port is None

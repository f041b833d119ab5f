"""A real gateway that has its metrics at a port of their own, and its log in JSON."""

from __future__ import annotations

import json
import signal

import httpx

from tests.integration.conftest import Process, Start, until
from tests.servers import free_port


def said(process: Process, beginning: str) -> str | None:
    messages = [json.loads(line)["message"] for line in process.text().splitlines() if line.endswith("}")]
    return next((message for message in messages if message.startswith(beginning)), None)


def test_metrics_at_a_port_of_their_own(start: Start) -> None:
    port, control = free_port(), f"tcp://127.0.0.1:{free_port()}"
    command = ("-m", "gateway", "--port", str(port), "--control-bind", control, "--log-format", "json")
    gateway = start(*command, DISAGFUSION_METRICS_PORT="0")
    told = until(lambda: said(gateway, "metrics at "), "the gateway says where its metrics are")
    url = told.removeprefix("metrics at ")
    scraped = until(lambda: _answer(url), "metrics are served")
    assert "disagfusion_ready 0.0" in scraped.text
    assert httpx.get(url.removesuffix("/metrics")).status_code == httpx.codes.NOT_FOUND
    assert httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == httpx.codes.NOT_FOUND
    assert gateway.finish(signal.SIGTERM) == 0


def test_a_port_that_is_taken(start: Start) -> None:
    port = free_port()
    command = ("-m", "gateway", "--port", str(port), "--control-bind", f"tcp://127.0.0.1:{free_port()}")
    gateway = start(*command, DISAGFUSION_METRICS_PORT=str(port))
    assert gateway.popen.wait(60) == 2
    assert "DISAGFUSION_METRICS_PORT" in gateway.text()


def _answer(url: str) -> httpx.Response | None:
    try:
        return httpx.get(url)
    except httpx.TransportError:
        return None

"""One trace per request across all processes, from the client's context to the phases inside a stage server."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import httpx

PROFILE = Path(__file__).with_name("slow.toml")
CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
EXPORT = {"OTEL_TRACES_EXPORTER": "console"}
STAGES = ("encoder", "dit", "decoder")


def spans_of(text: str) -> list[dict]:
    """What the console exporter printed, as far as it belongs to the client's trace."""
    found = [json.loads(match) for match in re.findall(r"^\{\n.*?^\}$", text, re.MULTILINE | re.DOTALL)]
    return [span for span in found if span["context"]["trace_id"].removeprefix("0x") in CLIENT]


def test_one_trace_from_the_client_to_every_phase(start, listening, until, is_ready, free_port):
    port = free_port()
    gateway = start("-m", "gateway", "--port", "0", "--control-bind", f"tcp://127.0.0.1:{port}", **EXPORT)
    stage = start(
        *("-m", "stage_server", "--engine", "emulated", "--profile", str(PROFILE), "--time-scale", "0.1"),
        *("--role", ",".join(STAGES), "--gateway", f"tcp://127.0.0.1:{port}"),
        **EXPORT,
    )
    url = listening(gateway)
    until(lambda: is_ready(url), "ready")
    body = {"prompt": "a secret", "size": "64x64"}
    answer = httpx.post(f"{url}/v1/images/generations", json=body, headers={"traceparent": CLIENT})
    assert answer.status_code == 200
    assert stage.finish(signal.SIGTERM) == 0
    assert gateway.finish(signal.SIGTERM) == 0
    here, there = spans_of(gateway.text()), spans_of(stage.text())
    by_id = {span["context"]["span_id"]: span for span in here + there}

    def path(span: dict) -> tuple[str, ...]:
        parent = by_id.get(span["parent_id"])
        return (*path(parent), span["name"]) if parent else (span["name"],)

    root = ("POST /v1/images/generations", "generate_content slow")
    assert {path(span) for span in here} >= {
        root,
        *((*root, f"stage {stage}") for stage in STAGES),
        *((*root, f"stage {stage}", "queue") for stage in STAGES),
    }
    phases = ("fetch", "compute", "publish")
    assert {path(span) for span in there} >= {
        (*root, f"stage {stage}", f"stage {stage}", phase) for stage in STAGES for phase in phases
    }
    (compute,) = (span for span in there if path(span)[-3:] == ("stage dit", "stage dit", "compute"))
    assert compute["attributes"]["steps"] == 20
    assert "a secret" not in gateway.text() + stage.text()

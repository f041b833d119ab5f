"""The load generator: traces, pace, and an honest summary."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import httpx
import pytest

from clients import load
from clients.timing import stage_seconds


def test_a_poisson_trace_is_the_same_for_the_same_seed() -> None:
    first = list(load.poisson(10.0, 50, {"prompt": "x"}, seed=3))
    assert first == list(load.poisson(10.0, 50, {"prompt": "x"}, seed=3))
    assert [planned.body["seed"] for planned in first] == list(range(50))
    assert all(a.at < b.at for a, b in itertools.pairwise(first))


def test_a_bad_line_of_a_trace_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"at": 0, "body": {}}\n{"body": {}}\n')
    with pytest.raises(ValueError, match=r"trace\.jsonl:2: not"):
        load.read_trace(path)


def test_failures_count_in_the_summary_and_not_in_the_latencies() -> None:
    outcomes = [load.Outcome(0.0, 1.0, 200), load.Outcome(1.0, 3.0, 200), load.Outcome(1.0, 0.1, 503, "full")]
    found = load.summary(outcomes)
    assert found["mean_seconds"] == pytest.approx(2.0)
    assert found["requests_per_second"] == pytest.approx(0.5)
    assert found["others"] == {"503 full": 1}


async def test_every_request_of_a_trace_is_sent_and_its_outcome_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if json.loads(request.content)["seed"] == 1:
            return httpx.Response(503, json={"error": {"code": "server_is_overloaded"}})
        return httpx.Response(200, json={}, headers={"x-predicted-wait-ms": "12"})

    client = httpx.AsyncClient
    monkeypatch.setattr(httpx, "AsyncClient", lambda **_: client(transport=httpx.MockTransport(answer)))
    trace = [load.Planned(0.0, {"seed": seed}) for seed in range(3)]
    outcomes = await load.run("http://gateway/v1", trace, timeout_seconds=5)
    assert [(o.status, o.code) for o in outcomes] == [(200, ""), (503, "server_is_overloaded"), (200, "")]
    assert outcomes[0].predicted_wait_ms == 12


def test_stage_timings_are_read_from_the_header() -> None:
    header = 'encoder.compute;dur=30.5;desc="s1", dit.0.compute;dur=1200;desc="s2 steps=8", odd'
    assert stage_seconds(header) == [("encoder.compute", 0.0305), ("dit.0.compute", 1.2)]

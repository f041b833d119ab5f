"""The load generator's figures and its command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clients.load import command
from clients.load.sending import Outcome, Tally
from clients.load.summary import in_words, quantile, summarise
from clients.timing import stage_seconds
from tests.clients.conftest import FakeServer, completed

OUTCOMES = [
    Outcome("a", 0.0, 0.0, 1.0, 200, service_seconds=1.0, predicted_seconds=0.5, slo_seconds=2.0, pictures=2),
    Outcome("a", 1.0, 0.004, 3.0, 200, service_seconds=3.0, predicted_seconds=4.0, slo_seconds=2.0),
    Outcome("b", 1.0, 0.0, 0.1, 503, "full", slo_seconds=2.0, attempts=2),
    Outcome("b", 9.0, 0.0, 0.1, 200, "server_error"),
]


def test_failures_miss_the_slo_and_count_in_no_latency() -> None:
    found = summarise(OUTCOMES)
    assert (found["requests"], found["succeeded"], found["retries"], found["late_seconds"]) == (4, 2, 1, 0.004)
    assert found["latency_seconds"] == {"mean": 2.0, "p50": 1.0, "p90": 3.0, "p95": 3.0, "p99": 3.0, "max": 3.0}
    assert (found["seconds"], found["requests_per_second"], found["pictures_per_second"]) == (4.0, 0.5, 0.75)
    assert found["slo_attained"] == pytest.approx(1 / 3)
    assert found["errors"] == {"503 full": 1, "200 server_error": 1}
    assert found["kinds"]["b"] == {"requests": 2, "succeeded": 0, "latency_seconds": None, "slo_attained": 0.0}


def test_predictions_are_held_against_what_they_foretold() -> None:
    assert summarise(OUTCOMES)["prediction"] == {
        "requests": 2,
        "median_error_seconds": -1.0,
        "median_absolute_error_seconds": 0.5,
        "p90_absolute_error_seconds": 1.0,
        "median_relative_error": 0.25,
    }
    assert summarise(OUTCOMES[2:])["prediction"] is None


def test_quantiles_are_values_that_were_seen() -> None:
    ordered = [float(value) for value in range(1, 101)]
    assert [quantile(ordered, share) for share in (0.0, 0.5, 0.95, 0.99, 1.0)] == [1, 50, 95, 99, 100]
    assert quantile([7.0], 0.5) == 7


def test_the_figures_in_words() -> None:
    said = "\n".join(in_words(summarise(OUTCOMES)))
    assert said.startswith("2 of 4 requests succeeded in 4.0 s: 0.5 requests/s, 0.75 pictures/s\n")
    assert "1 × 503 full" in said
    assert "33.3%" in said
    assert "25% off in the median" in said
    assert all("–" in line for line in said.splitlines() if line.startswith("b "))
    assert next(in_words(summarise([]))) == "0 of 0 requests succeeded in 0.0 s: 0 requests/s, 0 pictures/s"


def test_the_line_of_progress() -> None:
    assert command.progress(Tally(sent=6, outcomes=OUTCOMES), 12.4) == (
        "12 s  sent 6  under way 2  done 2  failed 2  p50 1.00 s  p95 3.00 s"
    )
    assert command.progress(Tally(), 0.0) == "0 s  sent 0  under way 0  done 0  failed 0"


@pytest.mark.parametrize("arrivals", ["poisson", "gamma", "closed"])
def test_a_load_is_sent_and_reported(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], arrivals: str
) -> None:
    server.stream = [b": admitted, predicted 0.10 s\n\n", completed()]
    arguments = ["--arrivals", arrivals, "--requests", "6", "--rate", "200", "--mix", "1:64x64/4,1:96x96/4+stream"]
    arguments += ["--slo", "30,96x96=1e-9", "--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")]
    assert command.main([*arguments, "--url", server.url]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("6 of 6 requests succeeded")
    assert told.err == ""
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["arguments"]["arrivals"] == arrivals
    assert found["summary"]["prediction"]["requests"] == 6
    small, large = (found["summary"]["kinds"][name] for name in ("64x64/4", "96x96/4+stream"))
    assert (small["slo_attained"], large["slo_attained"]) == (1.0, 0.0)
    assert sorted(body["seed"] for _, body in server.requests) == list(range(6))  # type: ignore[type-var]
    assert len(found["requests"]) == 6


def test_a_trace_is_sent_as_it_is_written(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photo.png").write_bytes(b"photo")
    lines = [{"at": 0.01, "prompt": "y", "image": ["photo.png"]}, {"at": 0.0, "size": "64x64"}, {"at": 99.0}]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    arguments = ["--trace", str(path), "--duration", "1", "--prompt", "x", "--json", "-"]
    assert command.main([*arguments, "--url", server.url]) == 0
    assert sorted(server.requests, key=lambda request: request[0]) == [
        ("/v1/images/edits", {"prompt": "y", "image": ("photo.png", "image/png", b"photo")}),
        ("/v1/images/generations", {"prompt": "x", "size": "64x64"}),
    ]
    assert json.loads(capsys.readouterr().out)["summary"]["succeeded"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "0"], "0 is not above 0"),
        (["--rate", "nan"], "nan is not above 0"),
        (["--requests", "1.5"], "invalid _count value: '1.5'"),
        (["--seeded-share", "2"], "2 is not between 0 and 1"),
        (["--slo", "64x64=x"], "invalid _slo value"),
        (["--arrivals", "trace"], "--trace and --arrivals trace go together"),
        (["--plot", "nowhere/out.png"], "'nowhere' is no folder to write to"),
    ],
)
def test_mistakes_are_named_before_anything_is_sent(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_bad_mixes_and_traces_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--mix", "lots"]) == 2
    assert "'lots' is not WEIGHT:" in capsys.readouterr().err
    assert command.main(["--trace", "absent.jsonl"]) == 2
    assert "absent.jsonl" in capsys.readouterr().err


def test_matplotlib_is_only_imported_for_a_plot() -> None:
    program = "import sys, clients.__main__; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_stage_timings_are_read_from_the_header() -> None:
    header = 'encoder.compute;dur=30.5;desc="s1", dit.0.compute;dur=1200;desc="s2 steps=8", odd'
    assert stage_seconds(header) == [("encoder.compute", 0.0305), ("dit.0.compute", 1.2)]


def test_ctrl_c_reports_what_was_done(server: FakeServer, tmp_path: Path) -> None:
    server.stream, server.hang = [b": keep-alive\n\n"], True
    command_line = [sys.executable, "-m", "clients", "load", "--rate", "1000", "--requests", "1", "--url", server.url]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started deaf to it
    process = subprocess.Popen(
        command_line, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert server.started.wait(30)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out.startswith("0 of 0 requests succeeded")
    assert err == "interrupted; 1 requests were under way\n"

"""What people see of the command lines: readers that have gone, Ctrl-C while modules are imported, exit statuses."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import AsyncMock

import httpx
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import rows
from benchmarks.rows import Goal, Row
from clients.load import command as load
from gateway.__main__ import _announce

ROOT = Path(__file__).parents[2]
SCENARIO = "scheduler/sim/scenarios/backlog.toml"


def start(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DISAGFUSION")}
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("scheduler", "predict", "--model", "FLUX.1-dev", "--device", "NVIDIA H100"),
        ("scheduler", "simulate", "--policies", "first-come", SCENARIO),
        ("clients", "load", "--requests", "1", "--rate", "1000", "--url", "http://127.0.0.1:9"),
        ("benchmarks", "--help"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_reader_that_has_gone_ends_it_without_a_word(arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start("-m", *arguments, stdout=writing)
    os.close(writing)
    _, said = process.communicate(timeout=120)
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


async def test_the_gateway_serves_on_when_nobody_reads_its_announcement(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone, socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(sys, "stdout", gone)
        await _announce(AsyncMock(), listener, "")
        gone.flush()  # as the interpreter does at its end


@pytest.mark.parametrize(
    ("program", "imported", "status"),
    [
        (("-m", "gateway", "--local"), "fastapi", 130),
        (("-m", "stage_server", "--role", "dit", "--gateway", "tcp://127.0.0.1:9"), "zmq", 0),
        (("examples/demo.py",), "openai", 130),
    ],
    ids=["gateway", "stage_server", "demo"],
)
def test_ctrl_c_while_modules_are_imported(program: tuple[str, ...], imported: str, status: int) -> None:
    process = start("-X", "importtime", *program)
    said = ""
    for line in process.stderr or ():
        said += line
        if re.search(rf"\| +{imported}\b", line):
            process.send_signal(signal.SIGINT)
            break
    out, rest = process.communicate(timeout=120)
    assert "Traceback" not in said + rest
    assert "KeyboardInterrupt" not in said + rest
    assert out == ""
    assert process.returncode == status


@pytest.mark.services
def test_the_demo_says_what_it_waits_for() -> None:
    process = start("examples/demo.py")
    said, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert re.search(r"gateway  at http://127\.0\.0\.1:\d+\n", said)
    for role in ("encoder", "dit", "decoder"):
        assert re.search(rf"  {role} +ready after \d+\.\d s\n", said)
    assert "The picture is in" in said


def test_a_load_of_which_nothing_succeeds_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = httpx.AsyncClient
    full = httpx.MockTransport(lambda _: httpx.Response(503, json={"error": {"message": "Full.", "code": "full"}}))
    monkeypatch.setattr(httpx, "AsyncClient", lambda **_: client(transport=full))
    assert load.main(["--requests", "2", "--rate", "1000", "--json", "-"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["summary"]["errors"] == {"503 full": 2}
    assert told.err == "none of the 2 requests succeeded\n"


@pytest.mark.parametrize("command", ["generate", "edit", "load"])
def test_help_names_the_environment_of_the_clients(command: str) -> None:
    said, _ = start("-m", "clients", command, "--help").communicate(timeout=60)
    assert "OPENAI_API_KEY" in said
    assert "OPENAI_BASE_URL" in said


def test_benchmarks_are_listed_and_chosen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        benchmarks.main(["--help"])
    assert ended.value.code == 0
    listed = capsys.readouterr().out
    assert all(f"  {name}  " in listed for name in benchmarks.BENCHMARKS)
    ran: list[str] = []
    for name, each in list(benchmarks.BENCHMARKS.items()):
        measure = lambda _effort, name=name: ran.append(name) or ()  # noqa: E731
        monkeypatch.setitem(benchmarks.BENCHMARKS, name, replace(each, measure=measure))
    assert benchmarks.main(["--only", "bodies,7,wire,5"]) == 0
    assert ran == ["bodies", "gateway", "wire"]
    with pytest.raises(SystemExit):
        benchmarks.main(["--only", "bodys"])
    assert "'bodys' is no benchmark; idle, " in capsys.readouterr().err


def test_a_benchmark_that_fails_keeps_no_other_from_running(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Row(11, "speed", "of light", 3.0, "×", Goal(">=", 7.0), "none", "python -m benchmarks.codecs")

    def broken(_effort: float) -> list[Row]:
        raise OSError("no such device")

    for name, measure in (("idle", broken), ("codecs", lambda _effort: [row])):
        monkeypatch.setitem(benchmarks.BENCHMARKS, name, replace(benchmarks.BENCHMARKS[name], measure=measure))
    assert benchmarks.main(["--only", "1,11", "--output", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert "no such device" in told.err
    assert told.err.endswith("failed, with nothing kept: idle\n")
    assert "of light: 3 × (goal: >= 7, NOT met)" in told.out
    assert rows.read(tmp_path / "pipeline.json") == [row]

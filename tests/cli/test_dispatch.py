"""The one command: finds what it is asked for, imports nothing else, and says what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli import __main__ as cli
from cli.commands import COMMANDS, Command

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "fastapi", "httpx", "scipy", "zmq", "sqlalchemy")


def run(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    how = ["-c", code] if code else ["-m", "cli"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *how, *arguments], env=env, text=True, capture_output=True, check=False, cwd=ROOT
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(name: str) -> None:
    if name in ("stage", "profile", "memory"):
        pytest.importorskip("torch")
    done = run(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: disagfusion {name} ")


def test_the_usage_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text and command.what in text for name, command in COMMANDS.items())
    assert cli.main([]) == 2
    assert capsys.readouterr().err == text


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["genrate", "a fox"]) == 2
    assert "there is no command 'genrate'; did you mean 'generate'?" in capsys.readouterr().err
    assert cli.main(["xyzzy"]) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_nothing_is_imported_before_a_command_is_called() -> None:
    code = f"import cli.__main__ as c, sys; c.main(['--help']); print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run(code=code).stdout.splitlines()[-1] == "[]"


def test_a_client_imports_neither_torch_nor_fastapi() -> None:
    code = (
        "import cli.__main__ as c, sys\n"
        "try: c.main(['generate', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'fastapi', 'scipy', 'gateway') if m in sys.modules])"
    )
    assert run(code=code).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "missing", "extra"),
    [
        ("gateway", "fastapi", "gateway"),
        ("serve", "uvicorn", "gateway,stage"),
        ("stage --role dit --model tiny-shapes --gateway tcp://127.0.0.1:1", "torch", "stage"),
        ("load", "httpx", "clients"),
        ("simulate scheduler/sim/scenarios/shift.toml", "scipy", "gateway"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(words: str, missing: str, extra: str) -> None:
    name = words.partition(" ")[0]
    gone = f"import sys; sys.modules[{missing!r}] = None"
    done = run(code=f"{gone}\nimport cli.__main__ as c; sys.exit(c.main({words.split()!r}))")
    assert done.returncode == 2
    assert (
        f'disagfusion {name} needs {missing}, which is not installed: pip install "disagfusion[{extra}]"' in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_a_defect_of_ours_is_not_taken_for_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "broken", Command("", "gateway.nowhere", extra="gateway"))
    with pytest.raises(ModuleNotFoundError, match="gateway"):
        cli.main(["broken"])


@pytest.mark.parametrize("arguments", ["--help", "predict --model FLUX.1-dev --device 'NVIDIA H100'"])
def test_a_reader_that_has_gone_ends_it_quietly(arguments: str) -> None:
    command = f"{sys.executable} -m cli {arguments} | true; echo ${{PIPESTATUS[0]}}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    done = subprocess.run(["bash", "-c", command], env=env, text=True, capture_output=True, check=False)
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "141")


def test_a_broken_pipe_has_the_status_that_shells_know() -> None:
    """Without chance: the reading end is closed before the command starts."""
    reading, writing = os.pipe()
    os.close(reading)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "cli", "--help"], env=env, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_console_script_is_declared() -> None:
    assert 'disagfusion = "cli.__main__:main"' in (ROOT / "pyproject.toml").read_text()

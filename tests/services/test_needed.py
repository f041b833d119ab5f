"""What tests of real servers need: named when it is missing, and able to run when it is there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.needed import PROGRAMS, find, needs

LISTED = Path(__file__).parents[1] / "debian-packages.txt"


def test_every_listed_package_has_a_program() -> None:
    listed = [line.partition("#")[0].strip() for line in LISTED.read_text().splitlines()]
    assert [package for package in listed if package] == list(PROGRAMS)


def test_what_is_missing_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.needed.find", lambda package: None if package != "nginx" else "/usr/sbin/nginx")
    mark = needs("redis-server", "nginx").mark
    assert mark.args == (True,)
    assert mark.kwargs["reason"] == "redis-server is not installed (tests/debian-packages.txt)"
    assert needs("nginx").mark.args == (False,)


@pytest.mark.services
@pytest.mark.parametrize("package", [pytest.param(package, marks=needs(package)) for package in PROGRAMS])
def test_what_is_installed_runs(package: str) -> None:
    asking = {"iproute2": "-V", "nginx": "-v"}.get(package, "--version")
    program = find(package)
    assert program
    subprocess.run([program, asking], check=True, timeout=60, capture_output=True)

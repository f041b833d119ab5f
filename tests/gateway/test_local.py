"""The embedded default: which stage servers a gateway starts beside itself."""

from __future__ import annotations

import sys

import pytest

from gateway.__main__ import main
from gateway.shell import local
from gateway.shell.local import LocalStageFailed, LocalStages
from wire.children import CannotStart, Program
from wire.types import Role

ENDPOINT = "tcp://127.0.0.1:1"


def test_stage_servers_of_every_role_are_told_where_the_gateway_is():
    command = LocalStages(ENDPOINT)._program(Role.DIT).command
    options = command[command.index("stage_server") + 1 :]
    assert options[:4] == ["--role", "dit", "--model", "tiny-shapes"]
    assert ENDPOINT in options


def test_a_further_stage_is_told_what_to_load():
    stages = LocalStages(ENDPOINT, further={Role.ENHANCER: "org/model"})
    command = stages._program(Role.ENHANCER).command
    assert command[command.index("--enhancer") + 1] == "org/model"
    assert command[command.index("--role") + 1] == "enhancer"
    assert "--enhancer" not in stages._program(Role.DIT).command


def test_a_further_stage_alone_is_a_mistake(capsys):
    assert main(["--local-enhancer", "org/model"]) == 2
    assert capsys.readouterr().err == "gateway: --local-enhancer needs --local\n"


async def test_one_that_cannot_start_ends_them_all(monkeypatch):
    stages = LocalStages(ENDPOINT)
    monkeypatch.setattr(stages, "_program", lambda role: Program(role, [sys.executable, "-c", "raise SystemExit(2)"]))
    with pytest.raises(BaseExceptionGroup) as group:
        await stages.run()
    assert isinstance(group.value.exceptions[0], CannotStart)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(local, "find_spec", lambda name: None)
    with pytest.raises(LocalStageFailed, match=r"pip install 'disagfusion\[stage\]'"):
        LocalStages(ENDPOINT)

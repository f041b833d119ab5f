"""Settings from a file, and the command that shows them all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli import __main__ as cli
from gateway.given_settings import ignored_variables, load_settings
from gateway.settings import InvalidSettings, Settings

FILE = """
port = 9000
host = "127.0.0.2"
admin_key = "an-operators-long-key"
cors_origins = ["https://pictures.example"]
file_store = "s3://user:geheim@bucket/prefix"
moderation_stages = ["before"]
[api_keys]
alice = "sk-alice-secret"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(FILE)
    return path


def test_the_file_stands_behind_variables_and_these_behind_the_command_line(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISAGFUSION_PORT", "9001")
    settings = load_settings(file)
    assert (settings.port, settings.host, settings.cors_origins) == (9001, "127.0.0.2", ("https://pictures.example",))
    assert load_settings(file, port=9002).port == 9002
    monkeypatch.setenv("DISAGFUSION_CONFIG", str(file))
    assert load_settings().host == "127.0.0.2"
    assert list(ignored_variables()) == []


def test_a_variable_takes_the_place_of_a_whole_table(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISAGFUSION_API_KEYS", '{"bob": "sk-bob"}')
    assert set(load_settings(file).api_keys) == {"bob"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("prot = 1", "'prot' is no setting; did you mean 'port'?"),
        ('DISAGFUSION_PORT = "1"', "did you mean 'port'?"),
        ("port = ", "is not TOML: "),
        ("port = 99999", "port: Input should be less than or equal to 65535"),
        ('control_bind = "5600"', "control_bind: '5600' is no address; write tcp://HOST:PORT"),
        ("[api_keys]\nalice = 5", "api_keys.alice: Input should be a valid string"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    with pytest.raises(InvalidSettings) as raised:
        load_settings(path)
    assert str(raised.value).startswith(f"{path}")
    assert complaint in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--config", str(tmp_path / "none.toml")]) == 2
    assert "none.toml cannot be read: No such file or directory" in capsys.readouterr().err


def test_every_setting_is_shown_with_its_origin_and_no_secret(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISAGFUSION_WEBHOOK_SECRET", "whsec_" + "QUFB" * 8)
    monkeypatch.setenv("DISAGFUSION_MAX_N", "4")
    assert cli.main(["config", "--config", str(file), "--json"]) == 0
    text = capsys.readouterr().out
    found = json.loads(text)
    assert list(found) == list(Settings.model_fields)
    assert found["port"] == {"value": 9000, "from": str(file)}
    assert found["max_n"] == {"value": 4, "from": "DISAGFUSION_MAX_N"}
    assert found["page"] == {"value": True, "from": "default"}
    assert found["api_keys"]["value"] == {"alice": "********"}
    assert found["file_store"]["value"] == "s3://********@bucket/prefix"
    assert found["moderation_stages"]["value"] == ["before"]
    assert not any(secret in text for secret in ("sk-alice", "geheim", "operators", "QUFB"))


def test_changed_leaves_out_defaults(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--config", str(file), "--changed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(str(file)) for line in lines) == 7
    assert not any(line.endswith("default") for line in lines)


def test_a_slip_in_a_variable_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DISAGFUSION_PROT", "1")
    assert cli.main(["config", "--changed"]) == 0
    assert "DISAGFUSION_PROT is no setting and is ignored; did you mean DISAGFUSION_PORT?" in capsys.readouterr().err

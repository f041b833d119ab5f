"""From a description to command lines and variables, which gateways and stage servers read as they are meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet.description import Fleet, Keys, Reference
from fleet.keys import Secrets, look_up
from fleet.programs import check_ports, gateway_program, relay_program, server, server_program
from fleet.table import InvalidFleet
from gateway.settings import Settings as GatewaySettings
from stage_server.relay.settings import read_relay_settings
from stage_server.settings import read_settings
from tests.curve import generate_keys
from wire.types import REQUIRED, Role

FLEET = Fleet.model_validate(
    {
        "allow_plaintext": True,
        "models": {
            "Big": {
                "source": "someone/big",
                "revision": "v1",
                "default": True,
                "aliases": ["gpt-image-1"],
                "options": {"dtype": "bfloat16", "store_bytes": 100_000, "adapter": ["ink=/a", "film=/b"]},
            },
            "small": {"source": "tiny-shapes"},
            "made-up": {"engine": "emulated", "profile": "sd3-l20", "options": {"time_scale": 0.1}},
        },
        "pools": {
            "gpu": {
                "models": ["Big", "small"],
                "gateways": ["main", "third"],
                "roles": ["encoder", "dit", "decoder"],
                "begin": [["encoder", "decoder"], ["dit"]],
                "max": 4,
                "drain_seconds": 45,
                "options": {"store_bytes": 200_000, "together": {"dit": 4}, "compile": True},
            },
            "cpu": {"models": ["made-up"], "gateways": ["second"]},
        },
        "gateways": {
            "main": {
                "port": 9000,
                "control_port": 9001,
                "settings": {"max_n": 4, "cors_origins": ["https://a.example"]},
            },
            "second": {"port": 9100, "control_port": 9101},
            "third": {"port": 9200, "control_port": 9201, "settings": {"shutdown_seconds": 7}},
        },
    }
)
SECRETS = Secrets({"DISAGFUSION_ADMIN_KEY": "0123456789abcdef"}, {"HF_TOKEN": "hf"})
AROUND = {"PATH": "/bin", "DISAGFUSION_PORT": "1", "DISAGFUSION_STAGE_PIN": "true"}


def test_a_server_reads_what_was_described(monkeypatch: pytest.MonkeyPatch) -> None:
    program = server_program(FLEET, server("gpu", 2), "10.0.0.1", "10.0.0.7", AROUND, SECRETS)
    assert program.environment == {"PATH": "/bin", "HF_TOKEN": "hf"}
    assert program.stop_seconds > 45
    settings = read_settings(program.command[3:])
    assert (settings.name, settings.gateway) == ("gpu-2", ("tcp://10.0.0.1:9001", "tcp://10.0.0.1:9201"))
    assert (settings.data_bind, settings.insecure) == ("tcp://10.0.0.7:*", True)
    assert (settings.model, settings.revision, settings.served_model_name) == ("someone/big", "v1", "Big")
    assert settings.may_load == ("small=tiny-shapes",)
    assert (settings.role, settings.may_take) == ((Role.DIT,), REQUIRED)
    assert (settings.dtype, settings.store_bytes, settings.compile) == ("bfloat16", 200_000, True)
    assert settings.adapter == ("ink=/a", "film=/b")
    assert (settings.together, settings.drain_timeout) == ({Role.DIT: 4}, 45)


def test_an_emulated_one_on_this_machine() -> None:
    command = server_program(FLEET, server("cpu", 1), "127.0.0.1", "127.0.0.1", AROUND, SECRETS).command
    settings = read_settings(command[3:])
    assert (settings.engine, settings.profile, settings.time_scale) == ("emulated", "sd3-l20", 0.1)
    assert (settings.served_model_name, settings.insecure, settings.gateway) == (
        "made-up",
        False,
        ("tcp://127.0.0.1:9101",),
    )


def test_a_gateway_reads_what_was_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = gateway_program(FLEET, "main", "10.0.0.1", AROUND, SECRETS, tmp_path)
    assert program.command[-8:] == [
        *("gateway", "--port", "9000", "--control-bind", "tcp://10.0.0.1:9001", "--data-bind", "tcp://10.0.0.1:5601"),
        "--allow-plaintext",
    ]
    assert program.environment is not None
    for name, value in program.environment.items():
        monkeypatch.setenv(name, value)
    settings = GatewaySettings()
    assert (settings.max_n, settings.cors_origins) == (4, ("https://a.example",))
    assert (settings.default_model, settings.model_aliases) == ("Big", {"gpt-image-1": "Big"})
    assert (settings.cell, settings.peers) == ("main", ("tcp://10.0.0.1:9201",))
    assert settings.admin_key is not None
    assert settings.admin_key.get_secret_value() == "0123456789abcdef"
    assert settings.state_dir == tmp_path
    assert "0123456789abcdef" not in " ".join(program.command)


def test_a_gateway_knows_the_models_of_its_own_pools_alone(tmp_path: Path) -> None:
    program = gateway_program(FLEET, "second", "10.0.0.1", AROUND, SECRETS, tmp_path)
    assert program.environment is not None
    assert "DISAGFUSION_DEFAULT_MODEL" not in program.environment
    assert "DISAGFUSION_MODEL_ALIASES" not in program.environment
    assert program.environment["DISAGFUSION_PEERS"] == "[]"


def test_a_gateway_has_the_time_that_it_says_to_end(tmp_path: Path) -> None:
    assert gateway_program(FLEET, "third", "10.0.0.1", AROUND, SECRETS, tmp_path).stop_seconds > 7
    assert gateway_program(FLEET, "main", "10.0.0.1", AROUND, SECRETS, tmp_path).stop_seconds > 120


def test_gateways_of_one_machine_have_ports_of_their_own() -> None:
    with pytest.raises(InvalidFleet, match=r"gateways\.second\.data_port: 5601 is gateways\.main\.data_port already"):
        check_ports(FLEET)


RELAYED = Fleet.model_validate(
    {
        "allow_plaintext": True,
        "models": {"small": {"source": "tiny-shapes"}},
        "pools": {"cpu": {"models": ["small"]}},
        "relays": {"front": {"port": 5800, "max_streams": 7, "drain_seconds": 3}, "back": {}},
    }
)
RELAY_KEY = {"DISAGFUSION_STAGE_RELAY_KEY": "swordfish"}


def test_servers_join_every_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    program = server_program(RELAYED, server("cpu", 1), "10.0.0.1", "10.0.0.7", AROUND, Secrets({}, RELAY_KEY))
    monkeypatch.setenv(*next(iter(RELAY_KEY.items())))
    settings = read_settings(program.command[3:])
    assert settings.relay == ("tcp://10.0.0.1:5800", "tcp://10.0.0.1:5700")
    assert settings.relay_key.get_secret_value() == "swordfish"
    assert "swordfish" not in " ".join(program.command)


def test_a_relay_reads_what_was_described(monkeypatch: pytest.MonkeyPatch) -> None:
    program = relay_program(RELAYED, "front", "10.0.0.1", AROUND, Secrets({}, RELAY_KEY, RELAY_KEY))
    assert program.environment == {"PATH": "/bin", **RELAY_KEY}
    assert program.stop_seconds > 3
    monkeypatch.setenv(*next(iter(RELAY_KEY.items())))
    settings = read_relay_settings(program.command[4:])
    assert (settings.bind, settings.max_streams, settings.drain_timeout) == ("tcp://10.0.0.1:5800", 7, 3)
    assert (settings.relay_key.get_secret_value(), settings.insecure) == ("swordfish", False)


def test_without_a_key_a_relay_lets_everybody_join_only_where_that_was_said() -> None:
    command = relay_program(RELAYED, "back", "10.0.0.1", AROUND, Secrets({}, {})).command
    assert read_relay_settings(command[4:]).insecure
    guarded = RELAYED.model_copy(update={"allow_plaintext": False})
    assert "--insecure" not in relay_program(guarded, "back", "10.0.0.1", AROUND, Secrets({}, {})).command


def test_a_relay_has_a_port_of_its_own() -> None:
    clash = RELAYED.model_copy(update={"relays": {"front": RELAYED.relays["front"].model_copy(update={"port": 8000})}})
    with pytest.raises(InvalidFleet, match=r"relays\.front\.port: 8000 is gateways\.gateway\.port already"):
        check_ports(clash)


ENCRYPTED = RELAYED.model_copy(
    update={"allow_plaintext": False, "keys": Keys(curve_gateways=Reference(env="G"), curve_servers=Reference(env="S"))}
)


def test_with_keys_nothing_is_said_to_be_allowed_unencrypted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours, theirs = generate_keys(), generate_keys()
    secrets = look_up(
        ENCRYPTED.keys, {"G": f"{ours.public} {ours.secret}", "S": f"{theirs.public} {theirs.secret}"}, tmp_path
    )
    gateway = gateway_program(ENCRYPTED, "gateway", "10.0.0.1", AROUND, secrets, tmp_path)
    stage = server_program(ENCRYPTED, server("cpu", 1), "10.0.0.1", "10.0.0.7", AROUND, secrets)
    for program in (gateway, stage):
        assert not {"--allow-plaintext", "--insecure"} & set(program.command)
        assert ours.secret not in " ".join(program.command)
        for name, value in (program.environment or {}).items():
            monkeypatch.setenv(name, value)
    of_gateway, of_stage = GatewaySettings(), read_settings(stage.command[3:])
    assert of_gateway.curve_allowed_keys == {"*": of_stage.curve_public_key}
    assert of_gateway.curve_public_key == of_stage.curve_gateway_key == ours.public

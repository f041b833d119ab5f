"""From a description to command lines and variables, which gateways and stage servers read as they are meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet.description import Fleet
from fleet.keys import Secrets
from fleet.programs import check_ports, gateway_program, server, server_program
from fleet.table import InvalidFleet
from gateway.settings import Settings as GatewaySettings
from stage_server.settings import read_settings
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

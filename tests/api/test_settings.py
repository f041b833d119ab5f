from __future__ import annotations

import os

import pytest

from gateway.given_settings import load_settings
from gateway.settings import InvalidSettings


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    for name in os.environ:
        if name.startswith("DISAGFUSION_"):
            monkeypatch.delenv(name)


def test_defaults_serve_this_machine_only():
    settings = load_settings()
    assert settings.host == "127.0.0.1"
    assert settings.control_bind.startswith("tcp://127.0.0.1:")
    assert settings.data_bind.startswith("tcp://127.0.0.1:")
    assert not settings.log_prompts


def test_the_environment_is_read_and_the_command_line_wins(monkeypatch):
    monkeypatch.setenv("DISAGFUSION_PORT", "9000")
    monkeypatch.setenv("DISAGFUSION_MAX_N", "4")
    monkeypatch.setenv("DISAGFUSION_MODEL_ALIASES", '{"gpt-image-1": "tiny-shapes"}')
    monkeypatch.setenv("DISAGFUSION_API_KEYS", '{"alice": "sk-1"}')
    settings = load_settings(port=9001)
    assert (settings.port, settings.max_n) == (9001, 4)
    assert settings.model_aliases == {"gpt-image-1": "tiny-shapes"}
    assert settings.api_keys["alice"].get_secret_value() == "sk-1"
    assert "sk-1" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "70000"),
        ("PORT", "http"),
        ("MAX_N", "11"),
        ("REQUEST_TIMEOUT_SECONDS", "0"),
        ("REQUEST_TIMEOUT_SECONDS", "inf"),
        ("CONTROL_BIND", "127.0.0.1:5600"),
        ("DATA_ADVERTISE", "tcp://host"),
        ("PUBLIC_URL", "images.example"),
        ("LOG_LEVEL", "loud"),
        ("API_KEYS", ""),  # never taken for no keys
        ("API_KEYS", '{"alice": ""}'),
        ("API_KEYS", '{"alice": "sk-secret", "bob": 5}'),
        ("API_KEYS", '{"~batches": "sk-secret"}'),
        ("MODEL_ALIASES", "gpt-image-1=tiny"),
        ("LIVENESS_SECONDS", "1"),
    ],
)
def test_a_bad_value_is_named(monkeypatch, name, value):
    monkeypatch.setenv(f"DISAGFUSION_{name}", value)
    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    assert name.lower() in str(caught.value).lower()
    assert "sk-secret" not in str(caught.value)


def test_an_unknown_setting_is_refused():
    with pytest.raises(InvalidSettings, match="DISAGFUSION_PROT"):
        load_settings(prot=1)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "gateway.example"])  # noqa: S104
def test_other_machines_need_a_key_or_a_decision(host):
    assert not load_settings(host=host).anonymous
    assert load_settings(host=host, allow_anonymous=True).anonymous


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2", "::1", "[::1]"])
def test_loopback_is_open(host):
    assert load_settings(host=host).anonymous

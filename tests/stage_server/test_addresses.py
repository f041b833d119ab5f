"""A data address that only this machine reaches, and a gateway on another one."""

from __future__ import annotations

import logging

import pytest

from stage_server.addresses import check_data_address
from stage_server.command_line import InvalidSettings
from stage_server.settings import read_settings


def check(gateway: str, *options: str) -> None:
    emulated = ("--engine", "emulated", "--profile", "tiny-shapes-cpu", "--role", "dit")
    check_data_address(read_settings([*emulated, "--gateway", gateway, *options]))


@pytest.mark.parametrize("flag", ["--data-bind", "--data-advertise"])
def test_loopback_with_the_gateway_on_another_machine(flag: str) -> None:
    """192.0.2.0/24 is kept for documentation: nobody has such an address."""
    with pytest.raises(InvalidSettings, match=rf"{flag} tcp://127.0.0.1:7 .* set --data-bind tcp://HOST:\* "):
        check("tcp://192.0.2.1:5600", flag, "tcp://127.0.0.1:7")


@pytest.mark.parametrize("gateway", ["tcp://127.0.0.1:5600", "tcp://localhost:5600", "tcp://[::1]:5600"])
def test_loopback_with_the_gateway_on_this_machine(gateway: str) -> None:
    check(gateway)


def test_with_a_relay_nobody_has_to_reach_it_and_without_one_it_is_named_as_the_cure() -> None:
    check("tcp://192.0.2.1:5600", "--relay", "tcp://127.0.0.1:5700")
    with pytest.raises(InvalidSettings, match="or --relay tcp://HOST:PORT where none can be reached"):
        check("tcp://192.0.2.1:5600")


def test_an_address_that_others_reach() -> None:
    check("tcp://192.0.2.1:5600", "--data-bind", "tcp://192.0.2.7:*")
    check("tcp://192.0.2.1:5600", "--data-advertise", "tcp://gpu-7:*")


def test_a_gateway_whose_name_does_not_resolve_is_only_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check("tcp://nowhere.invalid:5600")
    assert "the name 'nowhere.invalid' does not resolve" in caplog.text

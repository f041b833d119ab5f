from __future__ import annotations

import pytest

from wire.environment import complaints

SETTINGS = ("host", "port", "max_batch", "api_keys")
KUBERNETES = {
    "DISAGFUSION_GATEWAY_SERVICE_HOST": "10.0.0.1",
    "DISAGFUSION_GATEWAY_SERVICE_PORT": "8000",
    "DISAGFUSION_GATEWAY_SERVICE_PORT_HTTP": "8000",
    "DISAGFUSION_GATEWAY_PORT": "tcp://10.0.0.1:8000",
    "DISAGFUSION_GATEWAY_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "DISAGFUSION_GATEWAY_PORT_8000_TCP_PROTO": "tcp",
    "DISAGFUSION_GATEWAY_PORT_8000_TCP_PORT": "8000",
    "DISAGFUSION_GATEWAY_PORT_8000_TCP_ADDR": "10.0.0.1",
}


def said(environment, other="DISAGFUSION_STAGE_"):
    return list(complaints(environment, "DISAGFUSION_", SETTINGS, other))


def test_a_slip_is_named_with_what_was_probably_meant_and_without_its_value():
    (line,) = said({"DISAGFUSION_MAX_BATCHES": "8", "DISAGFUSION_HOST": "x", "HOME": "/"})
    assert line == "DISAGFUSION_MAX_BATCHES is no setting and is ignored; did you mean DISAGFUSION_MAX_BATCH?"
    assert "secret" not in said({"DISAGFUSION_API_KEY": "secret"})[0]


def test_what_resembles_nothing_is_only_named():
    assert said({"DISAGFUSION_XYLOPHONE_QUARTET": "1"}) == [
        "DISAGFUSION_XYLOPHONE_QUARTET is no setting and is ignored"
    ]


@pytest.mark.parametrize("environment", [{"disagfusion_port": "1"}, {"DISAGFUSION_STAGE_ROEL": "dit"}, KUBERNETES])
def test_quiet_about_settings_in_any_case_other_processes_and_kubernetes(environment):
    assert said(environment) == []


def test_a_port_that_is_no_service_is_a_slip():
    assert "did you mean DISAGFUSION_PORT?" in said({"DISAGFUSION_HTTP_PORT": "8000"})[0]

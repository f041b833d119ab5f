"""Who may use ``/admin``: whoever shows the admin key, and nobody where there is none."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from gateway.given_settings import load_settings
from gateway.settings import InvalidSettings, Settings

Connect = Callable[..., httpx.AsyncClient]

PATHS = [
    ("GET", "/admin/servers"),
    ("GET", "/admin/plan"),
    ("GET", "/admin/why"),
    ("POST", "/admin/servers/a/pin"),
    ("POST", "/admin/servers/a/roles"),
    ("POST", "/admin/servers/a/drain"),
    ("GET", "/admin/scaling"),
    ("POST", "/admin/servers/a/loss"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_without_a_key_in_the_settings_there_is_nothing(connect: Connect, method: str, path: str) -> None:
    answer = await connect(admin_key=None).request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("shown", ["", "wrong", "a-callers-key"])
async def test_another_key_opens_nothing(connect: Connect, method: str, path: str, shown: str) -> None:
    answer = await connect(shown, api_keys={"caller": "a-callers-key"}).request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_the_admin_key_is_no_callers_key(connect: Connect) -> None:
    answer = await connect(api_keys={"caller": "a-callers-key"}).get("/v1/models")
    assert answer.status_code == 401


def test_a_callers_key_is_no_admin_key() -> None:
    with pytest.raises(InvalidSettings, match="admin_key must not be one of api_keys"):
        load_settings(api_keys={"caller": "shared-by-mistake"}, admin_key="shared-by-mistake")


def test_an_admin_key_is_long_and_stays_out_of_sight() -> None:
    with pytest.raises(InvalidSettings, match="DISAGFUSION_ADMIN_KEY"):
        load_settings(admin_key="short")
    assert "operators-only" not in repr(Settings(admin_key="operators-only-0123"))

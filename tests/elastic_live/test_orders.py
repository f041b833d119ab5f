"""Operators change the roles of servers that compute real pictures, while requests are under way."""

from __future__ import annotations

import asyncio
import base64
import shutil
from pathlib import Path
from typing import Any

import pytest

import stage_server
from gateway.settings import Settings
from scheduler import events as ev
from tests.elastic_live.conftest import KEY
from wire.types import REQUIRED, Role

MODEL = Path(stage_server.__file__).parent / "models" / "tiny-shapes"
OPTIONS = ("--threads", "1", "--device", "cpu")

pytestmark = pytest.mark.services


@pytest.fixture
def settings() -> Settings:
    return Settings(admin_key=KEY, elastic_roles=False, liveness_seconds=20.0)


def requests(site: Any, count: int) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(site.picture("tiny-shapes", "64x64", 8, 7)) for _ in range(count)]


async def switched(site: Any, server: str, *roles: str) -> ev.RolesReady | ev.RolesFailed:
    """Order roles over HTTP, and wait for what becomes of it."""
    seen = len(site.tape.items)
    answer = await site.order(server, *roles)
    assert answer.status_code == 202, answer.text
    found: ev.RolesReady | ev.RolesFailed = await site.tape.find(ev.RolesReady | ev.RolesFailed, after=seen)
    return found


async def test_roles_switch_under_load_roll_back_and_come_back(site: Any, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(MODEL, tmp_path / "tiny-shapes"))
    cached = (*OPTIONS, "--model", str(copy), "--weight-cache-bytes", str(1 << 28))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(site.serve("one", *REQUIRED, options=(*OPTIONS, "--model", "tiny-shapes")))
        tasks.create_task(site.serve("two", Role.ENCODER, Role.DECODER, options=cached))
    (reference,) = await asyncio.gather(*requests(site, 1))
    under_way = requests(site, 3)

    (copy / "transformer").rename(tmp_path / "away")
    failed = await switched(site, "two", "dit")
    assert isinstance(failed, ev.RolesFailed)
    assert "transformer of tiny-shapes cannot be loaded" in failed.why
    (told,) = [one for one in (await site.http.get("/admin/servers")).json()["servers"] if one["name"] == "two"]
    assert (told["roles"], told["serving"]) == (["encoder", "decoder"], ["encoder", "decoder"])

    (tmp_path / "away").rename(copy / "transformer")
    loaded = await switched(site, "two", "dit")
    assert isinstance(loaded, ev.RolesReady)
    under_way += requests(site, 3)
    last = await site.order("one", "dit")
    assert last.status_code == 409
    assert "'one' is the last server that serves encoder and decoder" in last.json()["error"]["message"]
    assert isinstance(await switched(site, "two", "encoder", "decoder"), ev.RolesReady)
    shutil.rmtree(copy / "transformer")
    back = await switched(site, "two", "dit")  # out of the cache: there is no file to load
    assert isinstance(back, ev.RolesReady)
    print(f"dit: loaded in {loaded.load_seconds:.3f} s, out of the cache in {back.load_seconds:.3f} s")

    answers = await asyncio.gather(*under_way, *requests(site, 2))
    pictures = {base64.b64decode(answer.json()["data"][0]["b64_json"]) for answer in answers}
    assert pictures == {base64.b64decode(reference.json()["data"][0]["b64_json"])}

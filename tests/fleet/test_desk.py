"""How another shell of the same user asks a running fleet for something."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from fleet.launcher import LaunchFailed
from fleet.local.desk import NotUp, UpAlready, ask, keep_desk, sole


class Orders:
    """Implements ``fleet.local.desk.Orders``."""

    def __init__(self) -> None:
        self.said: list[str] = []

    async def status(self) -> Mapping[str, object]:
        return {"name": "x"}

    async def scale(self, pool: str, servers: int) -> None:
        if servers > 9:
            raise LaunchFailed("too many")
        self.said.append(f"{pool}={servers}")

    async def end(self) -> None:
        self.said.append("end")


@pytest.fixture
async def orders(tmp_path: Path) -> AsyncIterator[Orders]:
    orders = Orders()
    keeping = asyncio.create_task(keep_desk(tmp_path, orders))
    while not (tmp_path / "desk.json").exists():  # noqa: ASYNC110 # files have no events
        await asyncio.sleep(0)
    yield orders
    keeping.cancel()
    await asyncio.wait([keeping])
    assert not (tmp_path / "desk.json").exists()


async def test_orders_and_answers(orders: Orders, tmp_path: Path) -> None:
    assert await ask(tmp_path, "status") == {"name": "x"}
    await ask(tmp_path, "scale", pool="a", servers=3)
    with pytest.raises(LaunchFailed, match="too many"):
        await ask(tmp_path, "scale", pool="a", servers=10)
    await ask(tmp_path, "down")
    assert orders.said == ["a=3", "end"]
    with pytest.raises(LaunchFailed, match="does not know the order 'dance'"):
        await ask(tmp_path, "dance")


async def test_only_its_user_gets_in(orders: Orders, tmp_path: Path) -> None:
    path = tmp_path / "desk.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text(json.dumps(json.loads(path.read_text()) | {"token": "guessed"}))
    with pytest.raises(LaunchFailed, match="the token is another fleet's"):
        await ask(tmp_path, "down")
    assert orders.said == []


async def test_nonsense_is_not_answered(orders: Orders, tmp_path: Path) -> None:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", json.loads((tmp_path / "desk.json").read_text())["port"]
    )
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    assert await reader.read() == b""
    writer.close()


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(NotUp, match="no fleet of this name is up"):
        await ask(tmp_path, "status")
    (tmp_path / "desk.json").write_text('{"port": 1, "token": "of one that was killed"}')
    with pytest.raises(NotUp):
        await ask(tmp_path, "status")


def test_a_fleet_is_up_once(tmp_path: Path) -> None:
    with sole(tmp_path), pytest.raises(UpAlready, match="is up already"), sole(tmp_path):
        pass
    with sole(tmp_path):
        pass

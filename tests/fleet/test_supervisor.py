"""As many servers as are wanted, whatever launches them."""

from __future__ import annotations

import asyncio
import logging

import pytest

from fleet.description import Relay
from fleet.launcher import LaunchFailed
from fleet.shown import table
from fleet.supervisor import Supervisor
from tests.fleet.fakes import FLEET, FakeLauncher
from wire.children import CannotStart


@pytest.fixture
def launcher() -> FakeLauncher:
    return FakeLauncher()


@pytest.fixture
async def supervisor(launcher: FakeLauncher) -> Supervisor:
    supervisor = Supervisor(FLEET, launcher)
    await supervisor.up()
    return supervisor


async def test_up_starts_gateways_and_the_least_of_each_pool(supervisor: Supervisor, launcher: FakeLauncher) -> None:
    assert launcher.said == ["start gateway", "start a-1"]


async def test_the_last_come_is_the_first_to_go(supervisor: Supervisor, launcher: FakeLauncher) -> None:
    launcher.said.clear()
    await supervisor.scale("a", 3)
    await supervisor.scale("b", 1)
    await supervisor.scale("a", 2)
    await supervisor.scale("b", 0)
    assert launcher.said == ["start a-2", "start a-3", "start b-1", "drain a-3", "drain b-1"]


@pytest.mark.parametrize(
    ("pool", "servers", "complaint"),
    [
        ("aa", 1, "there is no pool 'aa'; did you mean 'a'?"),
        ("a", 0, "a has 1 to 3 servers, not 0"),
        ("a", 4, "a has 1 to 3 servers, not 4"),
    ],
)
async def test_what_cannot_be_scaled(
    pool: str, servers: int, complaint: str, supervisor: Supervisor, launcher: FakeLauncher
) -> None:
    launcher.said.clear()
    with pytest.raises(LaunchFailed) as error:
        await supervisor.scale(pool, servers)
    assert complaint in str(error.value)
    assert launcher.said == []


async def test_a_server_that_drains_is_not_started_before_it_has_ended(
    supervisor: Supervisor, launcher: FakeLauncher
) -> None:
    await supervisor.scale("a", 2)
    launcher.said.clear()
    launcher.ending.clear()
    fewer = asyncio.create_task(supervisor.scale("a", 1))
    more = asyncio.create_task(supervisor.scale("a", 2))
    while not launcher.said:  # noqa: ASYNC110 # the other tasks have their turn
        await asyncio.sleep(0)
    assert launcher.said == ["drain a-2"]
    launcher.ending.set()
    await asyncio.gather(fewer, more)
    assert launcher.said == ["drain a-2", "start a-2"]


async def test_down_ends_the_gateways_first(supervisor: Supervisor, launcher: FakeLauncher) -> None:
    await supervisor.scale("a", 2)
    launcher.said.clear()
    await supervisor.down()
    assert launcher.said == ["drain gateway", "end a-1", "end a-2"]
    assert not launcher.standings


async def test_a_gateway_that_cannot_be_started_is_the_end(supervisor: Supervisor, launcher: FakeLauncher) -> None:
    launcher.refuse("gateway")
    with pytest.raises(CannotStart, match="the gateway 'gateway' cannot be started"):
        await supervisor.watch()


async def test_a_server_that_cannot_be_started_is_tried_again_when_its_pool_is_scaled(
    supervisor: Supervisor, launcher: FakeLauncher, caplog: pytest.LogCaptureFixture
) -> None:
    launcher.refuse("a-1")
    launcher.refuse("gateway")
    with caplog.at_level(logging.ERROR), pytest.raises(CannotStart):
        await supervisor.watch()
    assert "a-1 cannot be started; its message is above. Scale its pool to try again" in caplog.text
    launcher.said.clear()
    await supervisor.scale("a", 1)
    assert launcher.said == ["drain a-1", "start a-1"]


async def test_what_status_shows(supervisor: Supervisor, launcher: FakeLauncher) -> None:
    await supervisor.scale("a", 2)
    launcher.refuse("a-2")
    lines = table(FLEET, await supervisor.status()).splitlines()
    assert [line.split() for line in lines] == [
        ["disagfusion"],
        ["gateway", "running", "here", "the", "gateway,", "port", "8000"],
        ["pool", "a:", "2", "wanted", "of", "1", "to", "3"],
        ["a-1", "running", "here"],
        ["a-2", "refused", "here"],
        ["pool", "b:", "0", "wanted", "of", "0", "to", "1"],
    ]


async def test_relays_come_first_and_go_last(launcher: FakeLauncher) -> None:
    fleet = FLEET.model_copy(update={"relays": {"front": Relay()}})
    supervisor = Supervisor(fleet, launcher)
    await supervisor.up()
    assert table(fleet, await supervisor.status()).splitlines()[2].split() == [
        *("front", "running", "here", "a", "relay,", "port", "5700"),
    ]
    await supervisor.down()
    assert launcher.said == [
        *("start front", "start gateway", "start a-1"),
        *("drain gateway", "end a-1", "end front"),
    ]


async def test_a_relay_that_cannot_be_started_is_the_end(launcher: FakeLauncher) -> None:
    supervisor = Supervisor(FLEET.model_copy(update={"relays": {"front": Relay()}}), launcher)
    await supervisor.up()
    launcher.refuse("front")
    with pytest.raises(CannotStart, match="the relay 'front' cannot be started"):
        await supervisor.watch()

"""Pools that are as large as gateways say; how they come to say so is not of this folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from fleet.description import Fleet
from fleet.following import ADMIN_KEY, Follower, followed
from fleet.keys import Secrets
from fleet.launcher import LaunchFailed
from fleet.supervisor import Supervisor
from tests.fleet.fakes import FLEET, FakeLauncher

KEYS = Secrets({ADMIN_KEY: "the-admin-key-0123"}, {})
Answers = dict[str, httpx.Response]


def pools(**wanted: tuple[int, list[str]]) -> httpx.Response:
    return httpx.Response(
        200, json={"pools": {name: {"wanted": servers, "drain": drain} for name, (servers, drain) in wanted.items()}}
    )


@pytest.fixture
def launcher() -> FakeLauncher:
    return FakeLauncher()


@pytest.fixture
async def supervisor(launcher: FakeLauncher) -> Supervisor:
    supervisor = Supervisor(FLEET, launcher, followed(FLEET, KEYS))
    await supervisor.up()
    launcher.said.clear()
    return supervisor


@pytest.fixture
def follower(supervisor: Supervisor) -> Follower:
    return Follower(supervisor, KEYS, "127.0.0.1")


@pytest.fixture
def answers() -> Answers:
    return {}


@pytest.fixture
async def http(answers: Answers) -> AsyncIterator[httpx.AsyncClient]:
    def answer(request: httpx.Request) -> httpx.Response:
        if (found := answers.get(f"{request.url.host}:{request.url.port}")) is None:
            raise httpx.ConnectError("nobody there", request=request)
        return found

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        yield client


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_pool_grows_and_the_server_named_goes(
    follower: Follower, launcher: FakeLauncher, answers: Answers, http: httpx.AsyncClient
) -> None:
    answers["127.0.0.1:8000"] = pools(a=(3, []), b=(0, []))
    await follower.follow(http)
    assert launcher.said == ["start a-2", "start a-3"]
    answers["127.0.0.1:8000"] = pools(a=(2, ["a-1"]), b=(1, []))
    await follower.follow(http)
    await settle()
    assert sorted(launcher.said[2:]) == ["drain a-1", "start b-1"]
    assert sorted(launcher.standings) == ["a-2", "a-3", "b-1", "gateway"]


async def test_a_server_that_drains_holds_nothing_up_and_is_not_started_meanwhile(
    follower: Follower, supervisor: Supervisor, launcher: FakeLauncher, answers: Answers, http: httpx.AsyncClient
) -> None:
    answers["127.0.0.1:8000"] = pools(a=(2, []))
    await follower.follow(http)
    launcher.ending.clear()
    answers["127.0.0.1:8000"] = pools(a=(1, ["a-1"]))
    await follower.follow(http)
    answers["127.0.0.1:8000"] = pools(a=(3, ["a-1"]))
    await follower.follow(http)
    await settle()
    assert launcher.said == ["start a-2", "start a-3", "drain a-1"]
    launcher.ending.set()
    await settle()
    await follower.follow(http)
    assert launcher.said[3:] == ["start a-1"]


async def test_the_least_stay_whatever_is_said(
    follower: Follower, launcher: FakeLauncher, answers: Answers, http: httpx.AsyncClient
) -> None:
    answers["127.0.0.1:8000"] = pools(a=(9, ["a-1"]), b=(9, []))
    await follower.follow(http)
    await settle()
    assert sorted(launcher.standings) == ["a-1", "a-2", "a-3", "b-1", "gateway"]


@pytest.mark.parametrize(
    "answer", [None, httpx.Response(503), httpx.Response(200, text="<html>"), httpx.Response(200, json=[])]
)
async def test_without_an_answer_all_stays_and_the_log_says_so_once(
    answer: httpx.Response | None,
    follower: Follower,
    launcher: FakeLauncher,
    answers: Answers,
    http: httpx.AsyncClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if answer is not None:
        answers["127.0.0.1:8000"] = answer
    await follower.follow(http)
    await follower.follow(http)
    assert launcher.said == []
    assert len(caplog.messages) == 1


async def test_of_several_gateways_each_speaks_for_its_own(
    launcher: FakeLauncher, answers: Answers, http: httpx.AsyncClient
) -> None:
    described = FLEET.model_dump(mode="json", exclude_unset=True)
    two = {"one": {}, "two": {"port": 8001, "control_port": 5602, "data_port": 5603, "settings": {"host": "10.0.0.2"}}}
    supervisor = Supervisor(Fleet.model_validate({**described, "gateways": two}), launcher, ["a"])
    await supervisor.up()
    launcher.said.clear()
    follower = Follower(supervisor, KEYS, "127.0.0.1")
    answers["127.0.0.1:8000"] = pools(a=(1, []))
    await follower.follow(http)
    assert launcher.said == [], "the other may have it all"
    answers["10.0.0.2:8001"] = pools(a=(2, []))
    await follower.follow(http)
    assert launcher.said == ["start a-2", "start a-3"]


async def test_a_server_that_needs_its_operator_is_left_alone(
    follower: Follower, launcher: FakeLauncher, answers: Answers, http: httpx.AsyncClient
) -> None:
    launcher.refuse("a-1")
    answers["127.0.0.1:8000"] = pools(a=(2, []))
    await follower.follow(http)
    assert launcher.said == ["start a-2"]


async def test_nobody_else_scales_it(supervisor: Supervisor) -> None:
    with pytest.raises(LaunchFailed, match=r'a is scaled by prediction: write scaled_by = "hand"'):
        await supervisor.scale("a", 2)


def test_without_an_admin_key_nobody_can_be_asked(caplog: pytest.LogCaptureFixture) -> None:
    assert followed(FLEET, Secrets({}, {})) == []
    assert "keys.admin_key" in caplog.text


async def test_down_ends_what_still_drains(
    follower: Follower, supervisor: Supervisor, launcher: FakeLauncher, answers: Answers, http: httpx.AsyncClient
) -> None:
    answers["127.0.0.1:8000"] = pools(a=(2, []))
    await follower.follow(http)
    launcher.ending.clear()
    answers["127.0.0.1:8000"] = pools(a=(1, ["a-1"]))
    await follower.follow(http)
    await settle()
    launcher.ending.set()
    await supervisor.down()
    assert launcher.standings == {}

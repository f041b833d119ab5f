from __future__ import annotations

import asyncio

import pytest
from starlette.requests import ClientDisconnect

from gateway.api.disconnect import while_connected


class Connection:
    """Answers ``receive`` when told to."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[str] = asyncio.Queue()

    async def receive(self) -> dict[str, str]:
        return {"type": await self.messages.get()}


@pytest.fixture
def connection():
    return Connection()


async def test_the_result_comes_back(connection):
    async def work() -> int:
        return 5

    assert await while_connected(connection.receive, work()) == 5


async def test_errors_come_back(connection):
    async def work() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await while_connected(connection.receive, work())


async def test_work_has_ended_when_the_disconnect_is_raised(connection):
    events = []

    async def work() -> None:
        connection.messages.put_nowait("http.request")
        connection.messages.put_nowait("http.disconnect")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            events.append("cleaned up")

    with pytest.raises(ClientDisconnect):
        await while_connected(connection.receive, work())
    assert events == ["cleaned up"]


async def test_cancelling_the_request_cancels_the_work(connection):
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    request = asyncio.create_task(while_connected(connection.receive, work()))
    await started.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert cancelled.is_set()


async def test_no_task_is_left(connection):
    async def work() -> None:
        return None

    before = asyncio.all_tasks()
    await while_connected(connection.receive, work())
    assert asyncio.all_tasks() == before

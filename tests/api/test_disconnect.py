from __future__ import annotations

import asyncio
from contextlib import suppress

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
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_the_request_goes_on_as_any_task_after_its_client_has_left(connection):
    connection.messages.put_nowait("http.disconnect")
    with pytest.raises(ClientDisconnect):
        await while_connected(connection.receive, asyncio.Event().wait())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.Event().wait()


async def test_work_that_ends_all_the_same_gives_its_result(connection):
    async def work() -> int:
        connection.messages.put_nowait("http.disconnect")
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return 5

    assert await while_connected(connection.receive, work()) == 5
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_request_that_is_cancelled_as_its_client_leaves_is_cancelled(connection):
    async def work() -> None:
        connection.messages.put_nowait("http.disconnect")
        await asyncio.Event().wait()

    request = asyncio.create_task(while_connected(connection.receive, work()))
    connection.messages.put_nowait("http.request")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    request.cancel()
    with pytest.raises((asyncio.CancelledError, ClientDisconnect)):
        await request
    assert request.cancelled()

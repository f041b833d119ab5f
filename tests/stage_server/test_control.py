"""The control socket by itself."""

from __future__ import annotations

import asyncio

import pytest
import zmq
import zmq.asyncio

from stage_server.runtime.control import ControlSocket, LinkEvent
from stage_server.runtime.events import Connected, Reconnect
from tests.descriptors import none_left

PATIENCE = 60.0


async def test_without_descriptors_it_waits_for_some(caplog: pytest.LogCaptureFixture) -> None:
    """The process lives, and whoever closes files lets it reach the gateway."""
    events: asyncio.Queue[LinkEvent] = asyncio.Queue()
    context = zmq.asyncio.Context()
    router = context.socket(zmq.ROUTER)
    endpoint = f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"
    control = ControlSocket([endpoint], "a/1", None, events.put_nowait)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        with none_left():
            control.reopen(tasks, Reconnect(0.0, endpoint))
            while "no socket can be made for the gateway" not in caplog.text:  # noqa: ASYNC110 # a line of the log
                await asyncio.sleep(0)
        assert isinstance(await events.get(), Connected)
        await control.close(0)
    context.destroy(linger=0)

"""Stage servers whose data address leads nowhere, or to another server: real processes on loopback."""

from __future__ import annotations

import asyncio

import psutil
import pytest

from scheduler import actions as act
from scheduler import events as ev
from wire.types import REQUIRED

pytestmark = pytest.mark.services

E, T, D = REQUIRED


async def join(service, name: str, *options: str) -> None:
    """A dit with an emulated engine and these options."""
    profile = next(iter(service.servers.values())).popen.args  # the same engine as the others
    at = profile.index("--profile")
    service.servers[name] = service.start(
        *("-m", "stage_server", "--engine", "emulated", *profile[at : at + 2], "--role", "dit", "--name", name),
        *("--gateway", service.gateway.pool.endpoint, *options),
    )
    await service.tape.find(ev.ServerJoined, lambda event: event.server.name == name)


@pytest.mark.parametrize("where", ["nothing", "another"])
async def test_a_dit_at_a_wrong_address_is_set_aside_and_no_request_fails(service, free_port, until, where):
    await service.serve_all(good=(T,), rest=(E, D))
    port = free_port()
    if where == "another":
        joined = [event.server for event in service.tape.events if isinstance(event, ev.ServerJoined)]
        good = next(server.id for server in joined if server.name == "good")
        port = service.gateway.dispatcher._servers[good].data_endpoint.rpartition(":")[2]
    address = f"tcp://127.0.0.1:{port}"
    await join(service, "bad", "--data-advertise", address)
    pictures = await asyncio.gather(*(service.generate(steps=2) for _ in range(8)))
    assert all(picture.images for picture in pictures)
    aside = await service.tape.find(act.SetAside)
    assert aside.server.startswith("bad/")
    assert T in aside.roles
    assert address in aside.reason
    assert ("connection refused" if where == "nothing" else "another server answers there: 'good'") in aside.reason
    status = service.gateway.dispatcher.status()["slow"]
    assert status["roles"][T] == 1
    assert address in next(iter(status["set_aside"].values()))
    until(lambda: "this server gets no" in service.servers["bad"].text(), "its own word on it")
    (told,) = (server for server in service.gateway.operator.servers() if server["name"] == "bad")
    assert "dit" in told["set_aside"]
    assert address in told["why_set_aside"]


async def test_as_the_only_dit_it_is_none_and_comes_back_with_its_port(service, free_port):
    await service.serve("rest", E, D)
    port = free_port()
    await join(service, "only", "--data-advertise", f"tcp://127.0.0.1:{port}", "--data-bind", "tcp://127.0.0.1:*")
    await service.tape.find(act.SetAside, lambda action: T in action.roles)
    assert not service.gateway.dispatcher.ready()
    bound = next(
        connection.laddr.port
        for connection in psutil.Process(service.servers["only"].pid).net_connections("tcp")
        if connection.status == "LISTEN"
    )
    forward = await asyncio.start_server(_towards(bound), "127.0.0.1", port)
    async with forward:
        await service.tape.find(act.SetAside, lambda action: not action.roles)
        assert service.gateway.dispatcher.ready()
        assert (await service.generate(steps=2)).images[0].startswith(b"\x89PNG")


def _towards(port: int):
    """A forwarding of the port: what was missing."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_copy(reader, back), _copy(there, writer))

    return forward


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(1 << 16):
            target.write(data)
    except ConnectionError:
        pass
    target.close()

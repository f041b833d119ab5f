"""A process that may serve two models: two servers to the gateway, one device."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Callable
from typing import Any

from stage_server.data.prober import try_peer
from wire.to_gateway import Goodbye, Heartbeat, Hello, Leaving, RolesFailed, RolesReady, StageDone
from wire.to_stage import AssignRoles, Refused, Release, TryPeer, Welcome
from wire.types import REQUIRED, Role, ServerId

Start = Callable[..., subprocess.Popen[str]]
SEVERAL = ("--role", "encoder,dit,decoder", "--name", "gpu", "--may-load", "other=tiny-shapes-cpu")


class Both:
    """What a gateway hears and says on the two connections of one process."""

    def __init__(self, gateway: Any) -> None:
        self._gateway = gateway
        self.hellos: dict[str, Hello] = {}
        self.peers: dict[str, bytes] = {}

    async def greet(self, refused: str = "") -> None:
        """Until both have introduced themselves; the one named ``refused`` is not let in."""
        while len(self.hellos) < 2:
            hello = await self._gateway.expect(Hello, seconds=30.0)
            self.hellos[hello.name], self.peers[hello.name] = hello, self._gateway.peer
            answer = Welcome(gateway=self._gateway.incarnation, heartbeat_seconds=0.2, liveness_seconds=20.0)
            refusal = Refused(code="roles", message="it holds nothing")
            await self._gateway.send(refusal if hello.name == refused else answer)

    def to(self, name: str) -> Any:
        """What is sent next goes there."""
        self._gateway.peer = self.peers[name]
        return self._gateway

    async def heard(self, name: str, kind: type[Any]) -> Any:
        message = await self._gateway.expect(kind)
        while self._gateway.peer != self.peers[name]:
            message = await self._gateway.expect(kind)
        return message


async def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = await asyncio.to_thread(process.communicate, timeout=90)
    return process.returncode, errors


async def test_each_model_has_a_server_and_all_share_the_device(gateway: Any, start: Start) -> None:
    process = start(*SEVERAL)
    both = Both(gateway)
    await both.greet()
    first, second = both.hellos["gpu"], both.hellos["gpu.2"]
    assert (first.model.name, first.roles) == ("tiny-shapes", REQUIRED)
    assert (second.model.name, second.roles, set(second.capable)) == ("other", (), set(REQUIRED))
    assert first.device == second.device == f"gpu/{first.incarnation}"
    assert first.data_endpoint == second.data_endpoint
    assert all(info.load_seconds > 0 for info in second.capable.values())
    probe = TryPeer(server=ServerId(f"gpu.2/{second.incarnation}"), endpoint=second.data_endpoint)
    assert await asyncio.to_thread(try_peer, probe, None) == "", "the data socket answers for both"

    await both.to("gpu.2").send(AssignRoles(epoch=gateway.epoch(), roles=(Role.ENCODER,)))
    assert (await both.heard("gpu.2", RolesReady)).roles == (Role.ENCODER,)
    epochs = [await both.to(name).run(Role.ENCODER) for name in both.hellos]
    handles: dict[str, str] = {}
    while len(handles) < 2:
        done = await gateway.expect(StageDone)
        handles[next(name for name, peer in both.peers.items() if peer == gateway.peer)] = done.outputs[0].handle
    assert len(epochs) == len(set(handles.values())) == 2
    for name, handle in handles.items():
        await both.to(name).send(Release(handles=(handle,)))

    await both.to("gpu.2").send(AssignRoles(epoch=gateway.epoch(), roles=()))
    assert (await both.heard("gpu.2", RolesReady)).roles == (), "it may hold nothing of a model"
    process.send_signal(signal.SIGTERM)
    assert {type(await gateway.expect(Leaving | Goodbye)) for _ in range(4)} == {Leaving, Goodbye}
    code, errors = await ended(process)
    assert code == 0, errors
    assert "Traceback" not in errors
    assert "holds encoder of other" in errors


async def test_a_gateway_that_takes_no_server_without_roles_gets_the_first(gateway: Any, start: Start) -> None:
    process = start(*SEVERAL)
    both = Both(gateway)
    await both.greet(refused="gpu.2")
    await both.to("gpu").run(Role.ENCODER)
    done = await both.heard("gpu", StageDone)
    await both.to("gpu").send(Release(handles=(done.outputs[0].handle,)))
    await both.heard("gpu", Heartbeat)
    process.send_signal(signal.SIGTERM)
    code, errors = await ended(process)
    assert code == 0, errors
    assert "going on without other" in errors


async def test_where_the_first_model_is_refused_the_process_ends(gateway: Any, start: Start) -> None:
    process = start(*SEVERAL)
    await gateway.expect(Hello, lambda hello: hello.name == "gpu", seconds=30.0)
    await gateway.send(Refused(code="roles", message="it holds nothing"))
    code, errors = await ended(process)
    assert code == 2, errors
    assert "the server of tiny-shapes has ended, and with it the process" in errors


async def test_a_server_of_one_model_must_hold_something(gateway: Any, start: Start) -> None:
    start("--role", "encoder", "--name", "gpu")
    assert (await gateway.welcome()).device == ""
    await gateway.send(AssignRoles(epoch=gateway.epoch(), roles=()))
    assert "no role at all" in (await gateway.expect(RolesFailed)).message

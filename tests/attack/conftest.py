"""A gateway in this process, and stage servers that lie, babble or flood: one socket each, no engine behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import zmq
import zmq.asyncio

import gateway.shell.assembly
from gateway.service.interfaces import Finished, ImageRequest
from gateway.settings import Settings
from gateway.shell.assembly import Gateway
from scheduler.core import Scheduler
from scheduler.invariants import check
from wire.bundle import Bundle, pack
from wire.control_codec import decode_to_stage, encode
from wire.params import ImageParams, ModelInfo, Workflow
from wire.to_gateway import Fetched, Hello, Output, RoleInfo, StageDone, Started, Timings, ToGateway
from wire.to_stage import Member, Release, Run
from wire.transfer import serve
from wire.types import REQUIRED, Handle, Role
from wire.version import PROTOCOL

PATIENCE = 60.0
PICTURE = b"a picture"
NEXT_PORT = {Role.ENCODER: "dit", Role.DIT: "decoder", Role.DECODER: "image"}

Answer = Callable[["Impostor", Run, Member], Iterable[ToGateway]]


class Impostor:
    """Speaks the protocol as a stage server of all roles. ``answer`` says what it replies to each member of a run."""

    def __init__(self, gateway_endpoint: str, name: str, answer: Answer, **hello: Any) -> None:
        self.name = name
        self.runs: list[Run] = []
        self.released: set[Handle] = set()
        self.store: dict[Handle, Bundle] = {}
        self.news = asyncio.Event()
        self.answer = answer
        self._context = zmq.asyncio.Context.instance()
        self._data = self._context.socket(zmq.ROUTER)
        port = self._data.bind_to_random_port("tcp://127.0.0.1")
        self._control = self._context.socket(zmq.DEALER)
        self._control.setsockopt(zmq.IDENTITY, f"{name}/1".encode())
        self._control.connect(gateway_endpoint)
        self.hello = Hello(
            **{
                "protocol": PROTOCOL,
                "name": name,
                "incarnation": "1",
                "model": ModelInfo(
                    name=name, key=name, family="none", dtype="float32", default_size=(64, 64), default_steps=4,
                    workflows=(Workflow("text2image", ("prompt", "height", "width", "seed")),),
                ),
                "device_class": "none",
                "memory_bytes": 1 << 30,
                "capable": {role: RoleInfo(weight_bytes=1) for role in REQUIRED},
                "roles": REQUIRED,
                "data_endpoint": f"tcp://127.0.0.1:{port}",
                "limits": dict.fromkeys(REQUIRED, 1000),
                "pinned": True,
            } | hello
        )  # fmt: skip

    async def send(self, *messages: ToGateway) -> None:
        for message in messages:
            await self._control.send(encode(message))

    async def send_raw(self, *frames: bytes) -> None:
        await self._control.send_multipart(frames)

    def honest(self, run: Run, member: Member) -> list[ToGateway]:
        return honest(self, run, member)

    def keep(self, name: str, value: Any) -> Output:
        handle = Handle(f"{self.name}-{len(self.store)}")
        self.store[handle] = pack({name: value})
        return Output(port="image", handle=handle, nbytes=self.store[handle].total_bytes)

    async def obey(self) -> None:
        await self.send(self.hello)
        while True:
            message = decode_to_stage(await self._control.recv())
            match message:
                case Run():
                    self.runs.append(message)
                    for member in message.members:
                        await self.send(*self.answer(self, message, member))
                case Release(handles=handles):
                    self.released |= set(handles)
            self.news.set()

    async def until_released(self, output: Output) -> None:
        async with asyncio.timeout(PATIENCE):
            while output.handle not in self.released:
                self.news.clear()
                await self.news.wait()

    async def hand_out(self) -> None:
        while True:
            peer, *frames = await self._data.recv_multipart()
            for answer in serve(frames, self.store.get, f"{self.hello.name}/{self.hello.incarnation}"):
                await self._data.send_multipart([peer, *answer])

    def close(self) -> None:
        self._control.close(linger=0)
        self._data.close(linger=0)


def honest(server: Impostor, run: Run, member: Member) -> list[ToGateway]:
    output = server.keep("image", PICTURE)
    port = NEXT_PORT[run.role]
    done = StageDone(
        epoch=member.epoch,
        outputs=(Output(port=port, handle=output.handle, nbytes=output.nbytes),),
        timings=Timings(compute=0.01, steps=4),
    )
    return [Fetched(epoch=member.epoch), Started(epoch=member.epoch), done]


class Checked(Scheduler):
    def handle_together(self, events: Any, now: float) -> Any:
        told = super().handle_together(events, now)
        check(self.view)
        return told


class Siege:
    def __init__(self, running: Gateway, task: asyncio.Task[None], stack: AsyncExitStack) -> None:
        self.gateway = running
        self._task = task
        self._stack = stack
        self._asked = 0

    @property
    def endpoint(self) -> str:
        return self.gateway.pool.endpoint

    async def impostor(self, name: str, answer: Answer = honest, **hello: Any) -> Impostor:
        server = Impostor(self.endpoint, name, answer, **hello)
        self._stack.callback(server.close)
        for loop in (server.obey(), server.hand_out()):
            self._stack.callback(asyncio.create_task(loop).cancel)
        async with asyncio.timeout(PATIENCE):
            while not any(info.name == name for info in self.gateway.dispatcher.models()):  # noqa: ASYNC110 # no event
                await asyncio.sleep(0.01)
        return server

    async def ask(self, model: str, deadline: float = PATIENCE) -> Finished:
        self._asked += 1
        images = (ImageParams(width=64, height=64, num_inference_steps=4, seed=self._asked),)
        request = ImageRequest(f"r{self._asked}", model, images, deadline)
        async with asyncio.timeout(PATIENCE):
            return await self.gateway.dispatcher.generate(request)

    async def stands(self) -> None:
        """Nothing has ended, and an honest server still gets its work and delivers its picture."""
        assert not self._task.done(), self._task
        assert (await self.ask("honest")).images == (PICTURE,)


@pytest.fixture
async def siege(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Siege]:
    monkeypatch.setattr(gateway.shell.assembly, "Scheduler", Checked)
    running = Gateway(
        Settings(control_bind="tcp://127.0.0.1:*", heartbeat_seconds=5, liveness_seconds=60, embedding_cache_bytes=0)
    )
    task = asyncio.create_task(running.run(), name="gateway")
    async with AsyncExitStack() as stack:
        besieged = Siege(running, task, stack)
        await besieged.impostor("honest")
        yield besieged
        assert not task.done(), task
    task.cancel()
    await asyncio.wait([task])

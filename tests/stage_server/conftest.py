"""A gateway that only says what a test tells it to, and engines that wait for the test."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from threading import Condition, Event
from typing import Any, TypeVar

import msgspec
import pytest
import zmq
import zmq.asyncio

from stage_server.data.consumer import Consumer
from stage_server.data.holder import Holder
from stage_server.data.store import OutputStore
from stage_server.engine.base import (
    IMAGE_PORT,
    DeviceTurn,
    JobControl,
    LoadError,
    NamedValues,
    Outputs,
    Prepared,
    StageJob,
)
from stage_server.engine.forms import Forms
from stage_server.runtime.core import CoreTimes
from stage_server.runtime.link import LinkTimes
from stage_server.runtime.server import Equipment, StageServer
from wire.bundle import pack
from wire.control_codec import decode_to_gateway, encode
from wire.params import ImageParams, ModelInfo
from wire.to_gateway import Ask, Hello, RoleInfo, StageCancelled, StageDone, ToGateway
from wire.to_stage import Cancel, Fine, InputRef, Member, Run, ToStage, Welcome
from wire.types import REQUIRED, Epoch, Handle, Role
from wire.values import Tensor
from wire.version import PROTOCOL

TIMEOUT = 10.0
M = TypeVar("M", bound=msgspec.Struct)


class FakeGateway:
    """A ROUTER whose one peer is the server under test."""

    def __init__(self, incarnation: str = "g1", port: int = 0, secret_key: str = "") -> None:
        self.incarnation = incarnation
        self._context = zmq.asyncio.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._router.setsockopt(zmq.LINGER, 0)
        if secret_key:
            self._router.setsockopt(zmq.CURVE_SERVER, 1)
            self._router.setsockopt(zmq.CURVE_SECRETKEY, secret_key.encode())
        self._router.bind(f"tcp://127.0.0.1:{port or '*'}")
        self.endpoint = self._router.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self.port = int(self.endpoint.rpartition(":")[2])
        self.answer: ToStage = Fine(gateway=incarnation)
        """To a server that asks before it loads."""
        self.peer = b""
        self.seen: list[ToGateway] = []
        self._epochs = count(1)
        self._unread: list[bytes] = []
        self.largest = 0
        """Frames that came as one message, at most."""

    def close(self) -> None:
        self._context.destroy(linger=0)

    async def send(self, *messages: ToStage | bytes) -> None:
        """As the frames of one."""
        frames = [each if isinstance(each, bytes) else encode(each) for each in messages]
        await self._router.send_multipart([self.peer, *frames])

    async def receive(self) -> ToGateway:
        if not self._unread:
            self.peer, *self._unread = await self._router.recv_multipart()
            self.largest = max(self.largest, len(self._unread))
        message = decode_to_gateway(self._unread.pop(0))
        if isinstance(message, Ask):
            await self.send(self.answer)
        self.seen.append(message)
        return message

    async def expect(self, kind: type[M], where: Callable[[M], bool] = lambda _: True, seconds: float = TIMEOUT) -> M:
        """The next message of this kind; others on the way are only kept in ``seen``."""
        async with asyncio.timeout(seconds):
            while True:
                message = await self.receive()
                if isinstance(message, kind) and where(message):
                    return message

    async def welcome(
        self, heartbeat: float = 0.5, liveness: float = 5.0, seconds: float = TIMEOUT, *, joins: bool = False
    ) -> Hello:
        """``seconds``: within which the server greets; one that imports torch takes long."""
        hello = await self.expect(Hello, seconds=seconds)
        await self.send(
            Welcome(gateway=self.incarnation, heartbeat_seconds=heartbeat, liveness_seconds=liveness, joins=joins)
        )
        return hello

    def epoch(self) -> Epoch:
        return Epoch(self.incarnation, next(self._epochs))

    async def run(self, role: Role, *inputs: InputRef, seconds: float = 60.0, **options: Any) -> Epoch:
        """Send a job of one member with small parameters."""
        epoch = self.epoch()
        params = options.pop("params", ImageParams(prompt="a red circle", height=64, width=64, num_inference_steps=4))
        extras = {name: options.pop(name) for name in ("images", "request") if name in options}
        member = Member(epoch=epoch, params=params, inputs=inputs, **extras)
        await self.send(Run(role=role, members=(member,), remaining_seconds=seconds, **options))
        return epoch

    async def settle(self) -> None:
        """The server has heard all that was sent before."""
        nobody = self.epoch()
        await self.send(Cancel(epochs=(nobody,)))
        await self.expect(StageCancelled, lambda message: message.epoch == nobody)

    async def done(self, epoch: Epoch, seconds: float = TIMEOUT) -> StageDone:
        """Jobs may end in another order than the one in which a test waits for them."""
        for message in self.seen:
            if isinstance(message, StageDone) and message.epoch == epoch:
                return message
        return await self.expect(StageDone, lambda message: message.epoch == epoch, seconds)


@pytest.fixture
async def make_gateway() -> AsyncIterator[Callable[..., FakeGateway]]:
    made: list[FakeGateway] = []

    def make(**options: Any) -> FakeGateway:
        made.append(FakeGateway(**options))
        return made[-1]

    yield make
    for fake in made:
        fake.close()


@pytest.fixture
async def gateway(make_gateway: Callable[..., FakeGateway]) -> FakeGateway:
    return make_gateway()


class GatedEngine:
    """Each step of each job waits until the test lets it go. A job's seed is its name."""

    device_class = "gated"
    memory_bytes = 1 << 30

    def __init__(self) -> None:
        self.roles: frozenset[Role] = frozenset()
        self.refused: frozenset[Role] = frozenset()
        self.warm: frozenset[Role] = frozenset()
        self.forms = Forms()
        self.disk = Event()
        """Reading weights waits for it."""
        self.disk.set()
        self.gates: dict[tuple[int, int], Event] = {}
        self.order: list[tuple[int, int]] = []
        self.output_bytes = 1000
        self.together = 1
        self.error: Exception | None = None
        self.prepared: list[int] = []
        self.finish: Event | None = None
        """What is left without the device waits for it."""

    def gate(self, seed: int, step: int) -> Event:
        return self.gates.setdefault((seed, step), Event())

    def open(self, seed: int, *steps: int) -> None:
        for step in steps:
            self.gate(seed, step).set()

    def describe(self) -> ModelInfo:
        return ModelInfo(name="gated", key="gated@1", family="gated", dtype="float32")

    def capable(self) -> dict[Role, RoleInfo]:
        return {role: RoleInfo(weight_bytes=1, together=self.together) for role in REQUIRED}

    def preload(self, roles: frozenset[Role], turn: DeviceTurn = nullcontext) -> None:
        assert self.disk.wait(TIMEOUT), "nobody let the disk go on"
        if bad := roles & self.refused:
            raise LoadError(f"{', '.join(bad)} cannot be read")
        self.warm |= roles - self.roles

    def set_roles(self, roles: frozenset[Role], turn: DeviceTurn = nullcontext) -> None:
        assert self.disk.wait(TIMEOUT), "nobody let the disk go on"
        if bad := roles & self.refused:
            raise LoadError(f"no room for {', '.join(bad)}")
        with turn():
            self.warm |= self.roles
            self.roles = roles
            self.warm -= roles

    def output_bound(self, job: StageJob) -> int:
        return self.output_bytes + 200

    def prepare(self, job: StageJob, inputs: NamedValues) -> Prepared:
        self.prepared.append(job.params.seed)
        return partial(self.run, job, inputs)

    def run(self, job: StageJob, inputs: NamedValues, control: JobControl) -> Outputs:
        seed, steps = job.params.seed, job.params.num_inference_steps or 1
        for step in range(1, steps + 1):
            assert self.gate(seed, step).wait(TIMEOUT), f"nobody opened step {step} of job {seed}"
            self.order.append((seed, step))
            if job.role is Role.DIT:
                control.step_done(step, steps)
                if step < steps and control.wanted():
                    control.pause(step)
        if self.finish is not None:
            control.device_done()
            assert self.finish.wait(TIMEOUT), f"nobody let job {seed} finish"
        if self.error is not None:
            raise self.error
        port = {Role.ENCODER: "dit", Role.DIT: "decoder", Role.DECODER: IMAGE_PORT}[job.role]
        data = Tensor("uint8", (self.output_bytes,), memoryview(bytes(self.output_bytes)))
        return {port: {"data": data}}

    def peak_bytes(self) -> int:
        return 0

    def close(self) -> None: ...


class Bench:
    """A stage server in this process, around a gated engine, with all three roles and room for a few outputs."""

    def __init__(
        self,
        gateway: FakeGateway,
        store_bytes: int = 100_000,
        roles: tuple[Role, ...] = REQUIRED,
        together: int = 1,
        prefetched: int = 1,
    ) -> None:
        self.engine = GatedEngine()
        self.engine.together = together
        self.engine.roles = frozenset(roles)
        self.room = Condition()
        self.store = OutputStore(store_bytes, on_room=self._room_freed)
        self.holder = Holder("tcp://127.0.0.1:*", self.store.get)
        self.consumer = Consumer(local=self.store.get)
        largest = dict.fromkeys(REQUIRED, self.engine.output_bytes + 200)
        self.store.set_roles({role: largest[role] for role in roles})
        hello = Hello(
            protocol=PROTOCOL,
            name="bench",
            incarnation="i1",
            model=self.engine.describe(),
            device_class="gated",
            memory_bytes=1 << 30,
            capable=self.engine.capable(),
            roles=roles,
            data_endpoint=self.holder.endpoint,
        )
        times = CoreTimes(link=LinkTimes(first_backoff=0.01, last_backoff=0.05), orphan=0.3, drain=5.0)
        equipment = Equipment(self.engine, self.store, self.consumer, self.room, largest, prefetched=prefetched)
        self.server = StageServer(hello, [gateway.endpoint], equipment, times)
        self.task = asyncio.create_task(self.server.run())

    def _room_freed(self) -> None:
        with self.room:
            self.room.notify_all()

    async def close(self) -> None:
        for gate in self.engine.gates.values():
            gate.set()
        if not self.task.done():
            self.server.terminate()
            self.server.terminate()
        await asyncio.wait([self.task], timeout=TIMEOUT)
        self.consumer.close()
        self.holder.close()


@pytest.fixture
async def make_bench(gateway: FakeGateway) -> AsyncIterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(**options: Any) -> Bench:
        benches.append(Bench(gateway, **options))
        return benches[-1]

    yield make
    for bench in benches:
        await bench.close()


class RemoteHolder:
    """Another process's store, as far as the server under test can tell."""

    def __init__(self) -> None:
        self.store = OutputStore(1 << 20)
        self.held_back = Event()
        self.held_back.set()
        self.holder = Holder("tcp://127.0.0.1:*", self._lookup)

    def put(self, **values: Any) -> InputRef:
        bundle = pack(values)
        reservation = self.store.reserve(Role.DECODER, bundle.total_bytes)
        assert reservation is not None
        handle = self.store.publish(reservation, bundle)
        return InputRef(handle=handle, endpoint=self.holder.endpoint, nbytes=bundle.total_bytes)

    def _lookup(self, handle: Handle) -> Any:
        assert self.held_back.wait(TIMEOUT)
        return self.store.get(handle)

    def close(self) -> None:
        self.held_back.set()
        self.holder.close()


@pytest.fixture
def remote() -> Iterator[RemoteHolder]:
    holder = RemoteHolder()
    yield holder
    holder.close()


@pytest.fixture
def start(gateway: FakeGateway) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``python -m stage_server`` with the emulated engine; its stderr is a pipe."""
    processes: list[subprocess.Popen[str]] = []

    def launch(
        *options: str, emulated: bool = True, endpoint: str = "", module: str = "stage_server", **variables: str
    ) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", module, "--gateway", endpoint or gateway.endpoint]
        if emulated:
            command += ["--engine", "emulated", "--profile", "tiny-shapes-cpu", "--time-scale", "0.1"]
        command += options
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DISAGFUSION")}
        environment |= variables
        processes.append(
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=Path(__file__).parents[2])
        )
        return processes[-1]

    yield launch
    for process in processes:
        process.kill()
        process.communicate()

"""Real processes: a gateway inside the test (to see what it decides) or beside it, and stage servers beside it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import TypeVar

import httpx
import psutil
import pytest

import gateway.shell.assembly
from gateway.api.app import create_app
from gateway.service.interfaces import Finished, ImageRequest
from gateway.settings import Settings
from gateway.shell.assembly import Gateway
from scheduler import actions as act
from scheduler import events as ev
from scheduler.core import Scheduler
from scheduler.invariants import check
from tests.databases import prepared
from tests.servers import free_port
from wire.params import ImageParams
from wire.types import REQUIRED, Role, ServerId

PROFILE = Path(__file__).with_name("slow.toml")
PATIENCE = 240.0
"""Seconds for what should take one, or five where torch is imported: the machine may be busy."""

Found = TypeVar("Found")
Kind = TypeVar("Kind")


def until(condition: Callable[[], Found], what: str, seconds: float = PATIENCE) -> Found:
    """The first true value of ``condition``."""
    limit = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < limit, f"{what}: not within {seconds:g} s"
        time.sleep(0.02)
    return found


@dataclass
class Process:
    """A program of ours with its log."""

    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def text(self) -> str:
        return self.log.read_text()

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """Nothing is tidied up."""
        self.popen.kill()
        self.popen.wait(PATIENCE)

    def finish(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.send(number)
        return self.popen.wait(PATIENCE)


Start = Callable[..., Process]


@contextmanager
def launcher(folder: Path) -> Iterator[Start]:
    """Starts ``python …``; whatever still runs at the end is killed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DISAGFUSION_", "OTEL_"))}
    clean["DISAGFUSION_STATE_DIR"] = str(prepared(folder / "state"))
    started: list[Process] = []

    def start(*arguments: str, **environment: str) -> Process:
        log = folder / f"{len(started)}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [sys.executable, *arguments], env=clean | environment, stdout=output, stderr=subprocess.STDOUT
            )
        started.append(Process(popen, log))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            if process.popen.poll() is None:
                process.send(signal.SIGCONT)
                process.kill()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with launcher(tmp_path) as start:
        yield start


class Tape(Scheduler):
    """The real scheduler with all that goes in and out written down, and its invariants checked after each turn."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.events: list[ev.Event] = []
        self.actions: list[act.Action] = []
        self.news = asyncio.Event()

    def handle_together(self, events: Sequence[ev.Event], now: float) -> list[list[act.Action]]:
        """``handle`` is this with one event."""
        told = super().handle_together(events, now)
        check(self.view)
        self.events += events
        self.actions += chain.from_iterable(told)
        self.news.set()
        return told

    async def find(
        self,
        kind: type[Kind],
        wanted: Callable[[Kind], object] = lambda _: True,
        *,
        after: int = 0,
        seconds: float = PATIENCE,
    ) -> Kind:
        """The first event or action of ``kind`` that is ``wanted``, or the one ``after`` so many, once it is there."""
        async with asyncio.timeout(seconds):
            while True:
                seen = [item for item in (*self.events, *self.actions) if isinstance(item, kind) and wanted(item)]
                if len(seen) > after:
                    return seen[after]
                self.news.clear()
                await self.news.wait()

    def runs(self, role: Role) -> list[act.Run]:
        return [action for action in self.actions if isinstance(action, act.Run) and action.role is role]


@dataclass
class Service:
    """A gateway in this process, and the stage servers that it was given."""

    gateway: Gateway
    tape: Tape
    settings: Settings
    start: Start
    servers: dict[str, Process] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)

    async def serve(
        self,
        name: str,
        *roles: Role,
        model: str = "",
        module: str = "stage_server",
        options: tuple[str, ...] = (),
        **environment: str,
    ) -> Process:
        """Start a stage server and wait until it has joined; without a ``model``, with the emulated engine."""
        emulated = ("--engine", "emulated", "--profile", str(PROFILE))
        joined = sum(isinstance(e, ev.ServerJoined) and e.server.name == name for e in self.tape.events)
        self.servers[name] = self.start(
            *("-m", module, *(("--model", model, "--threads", "1") if model else emulated)),
            *("--role", ",".join(roles), "--gateway", self.gateway.pool.endpoint, "--name", name, *options),
            **environment,
        )
        patience = PATIENCE * (3 if model else 1)
        await self.tape.find(ev.ServerJoined, lambda e: e.server.name == name, after=joined, seconds=patience)
        return self.servers[name]

    async def serve_all(self, model: str = "", **servers: tuple[Role, ...]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for name, roles in servers.items():
                tasks.create_task(self.serve(name, *roles, model=model))

    def generate(
        self,
        *,
        n: int = 1,
        steps: int = 20,
        deadline: float = 30.0,
        width: int = 64,
        seed: int = 0,
        model: str = "slow",
        guidance: float | None = None,
    ) -> Awaitable[Finished]:
        request_id = f"req{next(self.numbers)}"
        images = tuple(
            ImageParams(
                prompt="a star",
                width=width,
                height=64,
                seed=seed + index,
                num_inference_steps=steps,
                guidance_scale=guidance,
            )
            for index in range(n)
        )
        request = ImageRequest(request_id=request_id, model=model, images=images, deadline_seconds=deadline)
        return asyncio.create_task(self.gateway.dispatcher.generate(request), name=request_id)

    def server_of(self, server: ServerId) -> Process:
        return self.servers[server.partition("/")[0]]

    async def all_stores_empty(self) -> None:
        """Every live server says, in a heartbeat from now on, that it keeps no byte."""
        begun = {server: beat.sequence for server, beat in self.gateway.pool.vitals().items()}
        async with asyncio.timeout(PATIENCE):
            while not all(  # noqa: ASYNC110 # heartbeats are no events
                beat.sequence > begun[server] and beat.store_bytes == 0
                for server, beat in self.gateway.pool.vitals().items()
            ):
                await asyncio.sleep(0.02)


@pytest.fixture
def settings() -> Settings:
    """Roles stay as each test gives them out."""
    return Settings(
        control_bind=f"tcp://127.0.0.1:{free_port()}",
        heartbeat_seconds=0.2,
        liveness_seconds=1.5,
        default_model="slow",
        elastic_roles=False,
        embedding_cache_bytes=0,  # tests look for stores that are empty
    )


@pytest.fixture
async def service(settings: Settings, start: Start, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    tapes: list[Tape] = []

    def scheduler(*arguments: object) -> Tape:
        tapes.append(Tape(*arguments))
        return tapes[-1]

    monkeypatch.setattr(gateway.shell.assembly, "Scheduler", scheduler)
    running = Gateway(settings)
    task = asyncio.create_task(running.run(), name="gateway")
    yield Service(running, tapes[0], settings, start)
    assert not task.done(), task
    task.cancel()
    await asyncio.wait([task])


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(service.gateway.dispatcher, service.settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway.test") as client:
        yield client


def listening(process: Process) -> str:
    """The url at which a gateway process serves HTTP."""

    def found() -> re.Match[str] | None:
        assert process.popen.poll() is None, process.text()
        return re.search(r"listening at (http://[^;\s]+)", process.text())

    return until(found, "a gateway that listens")[1]


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


# Helpers reach the test modules as fixtures: in --import-mode=importlib they cannot import this one.


@pytest.fixture(name="until", scope="session")
def until_fixture() -> Callable[..., object]:
    return until


@pytest.fixture(name="listening", scope="session")
def listening_fixture() -> Callable[[Process], str]:
    return listening


@pytest.fixture(name="is_ready", scope="session")
def is_ready_fixture() -> Callable[[str], bool]:
    return is_ready


@pytest.fixture(name="free_port", scope="session")
def free_port_fixture() -> Callable[[], int]:
    return free_port


@pytest.fixture(scope="session")
def local_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``python -m gateway --local``, shared by all tests of one worker; Ctrl-C must leave nothing of it behind."""
    with launcher(tmp_path_factory.mktemp("local")) as start:
        process = start("-m", "gateway", "--local", "--port", "0")
        url = listening(process)
        until(lambda: is_ready(url), "a picture service that is ready")
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == len(REQUIRED)
        yield url
        assert process.finish(signal.SIGINT) == 0, process.text()
        assert [child for child in children if child.is_running()] == []
        assert "Traceback" not in process.text()

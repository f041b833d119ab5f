"""A real gateway in the test's process, with its HTTP API, and real stage servers in processes of their own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

import gateway.shell.assembly
from gateway.api.app import create_app
from gateway.settings import Settings
from gateway.shell.assembly import Gateway
from scheduler import actions as act
from scheduler import events as ev
from scheduler.core import Scheduler
from scheduler.invariants import check
from wire.types import Role, ServerId

PROFILE = Path(__file__).with_name("two_halves.toml")
PATIENCE = 300.0
KEY = "operators-only-0123"

Item = TypeVar("Item")


class Tape(Scheduler):
    """The real scheduler; keeps what went in and out, and checks its invariants after every event."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.items: list[object] = []
        self.news = asyncio.Event()

    def handle_together(self, events: Sequence[ev.Event], now: float) -> list[list[act.Action]]:
        told = super().handle_together(events, now)
        check(self.view)
        for event, actions in zip(events, told, strict=True):
            self.items += [event, *actions]
        self.news.set()
        return told

    def all(self, kind: type[Item], wanted: Callable[[Item], object] = lambda _: True) -> list[Item]:
        return [item for item in self.items if isinstance(item, kind) and wanted(item)]

    def model_of(self, server: ServerId) -> str:
        """Name of the model that it serves, also of one that is gone."""
        joined = self.all(ev.ServerJoined, lambda event: event.server.id == server)
        return joined[0].server.target.model

    async def find(self, kind: type[Item], wanted: Callable[[Item], object] = lambda _: True, after: int = 0) -> Item:
        """The first that is wanted among what comes after ``after`` items, once it is there."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for item in self.items[after:]:
                    if isinstance(item, kind) and wanted(item):
                        return item
                self.news.clear()
                await self.news.wait()


@dataclass
class Site:
    gateway: Gateway
    tape: Tape
    http: httpx.AsyncClient
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    async def serve(self, name: str, *roles: Role, options: tuple[str, ...]) -> None:
        """Start a stage server; return when it has joined."""
        self._launch(name, "--role", ",".join(roles), *options)
        await self.tape.find(ev.ServerJoined, lambda event: event.server.name == name)

    def _launch(self, name: str, *options: str) -> None:
        command = [sys.executable, "-m", "stage_server", "--gateway", self.gateway.pool.endpoint, "--name", name]
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("DISAGFUSION_", "OTEL_"))}
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes.append(subprocess.Popen([*command, *options], env=clean, stderr=log))

    async def serve_all(self, options: tuple[str, ...], **servers: tuple[Role, ...]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for name, roles in servers.items():
                tasks.create_task(self.serve(name, *roles, options=options))

    async def picture(self, model: str, size: str, steps: int, seed: int) -> httpx.Response:
        body = {"model": model, "prompt": "a red circle", "size": size, "num_inference_steps": steps, "seed": seed}
        return await self.http.post("/v1/images/generations", json=body)

    async def order(self, server: str, *roles: str) -> httpx.Response:
        return await self.http.post(f"/admin/servers/{server}/roles", json={"roles": roles})


@pytest.fixture
def settings() -> Settings:
    """Overridden by parametrisation."""
    return Settings()


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait(PATIENCE)


@pytest.fixture
async def site(
    settings: Settings, processes: list[subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    tapes: list[Tape] = []

    def tape(*arguments: object) -> Tape:
        tapes.append(Tape(*arguments))
        return tapes[-1]

    monkeypatch.setattr(gateway.shell.assembly, "Scheduler", tape)
    running = Gateway(settings.model_copy(update={"control_bind": "tcp://127.0.0.1:*", "embedding_cache_bytes": 0}))
    task = asyncio.create_task(running.run(), name="gateway")
    app = create_app(running.dispatcher, settings, operator=running.operator)
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://g", headers=headers) as http:
        yield Site(running, tapes[0], http, tmp_path, processes)
    assert not task.done(), task
    task.cancel()
    await asyncio.wait([task])

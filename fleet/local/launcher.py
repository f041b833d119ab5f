"""Launches processes on this machine. They end with this one, also when it is killed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from fleet.description import Fleet
from fleet.keys import Secrets
from fleet.launcher import Standing
from fleet.local.gpus import Gpus
from fleet.programs import Kind, Member, gateway_program, relay_program, server_program
from wire.children import STOP_SECONDS, CannotStart, Child, Program

HOST = "127.0.0.1"


class LocalLauncher:
    """Implements ``fleet.launcher.Launcher``."""

    def __init__(
        self, fleet: Fleet, secrets: Secrets, gpus: Gpus, state: Path, write: Callable[[str, str], None]
    ) -> None:
        """``state``: folder of the fleet. ``write`` gets a process's name and a line of its output."""
        self._fleet = fleet
        self._secrets = secrets
        self._gpus = gpus
        self._state = state
        self._write = write
        self._children: dict[str, tuple[Child, asyncio.Task[None]]] = {}
        self._changes: asyncio.Queue[Standing] = asyncio.Queue()

    async def start(self, member: Member) -> None:
        child = Child(
            self._program(member),
            on_line=lambda line: self._write(member.name, line),
            on_change=lambda child: self._changes.put_nowait(_standing(child)),
        )
        self._children[member.name] = child, asyncio.create_task(_run(child), name=member.name)

    async def stop(self, member: Member, *, drain: bool = True) -> None:
        if (found := self._children.get(member.name)) is None:
            return
        _, running = found
        running.cancel()
        await asyncio.wait([running], timeout=None if drain else STOP_SECONDS)
        if not running.done():
            running.cancel()
            await asyncio.wait([running])
        del self._children[member.name]
        self._gpus.give_back(member.name)

    async def list(self) -> Sequence[Standing]:
        return [_standing(child) for _, (child, _) in sorted(self._children.items())]

    async def watch(self) -> AsyncIterator[Standing]:
        while True:
            yield await self._changes.get()

    def _program(self, member: Member) -> Program:
        if member.kind is Kind.GATEWAY:
            state = self._state / "gateways" / member.name
            return gateway_program(self._fleet, member.name, HOST, os.environ, self._secrets, state)
        if member.kind is Kind.RELAY:
            return relay_program(self._fleet, member.name, HOST, os.environ, self._secrets)
        program = server_program(self._fleet, member, HOST, HOST, os.environ, self._secrets)
        pool = self._fleet.pools[member.pool]
        if self._fleet.models[pool.models[0]].engine == "emulated" or not pool.resources.num_gpus:
            return program
        devices = ",".join(self._gpus.take(member.name, pool.resources.num_gpus))
        return replace(program, environment={**(program.environment or {}), "CUDA_VISIBLE_DEVICES": devices})


async def _run(child: Child) -> None:
    with suppress(CannotStart):  # who watches is told by the child's condition
        await child.run()


def _standing(child: Child) -> Standing:
    where = f"pid {child.pid}" if child.pid is not None else "this machine"
    return Standing(child.program.name, child.condition, where, child.starts)

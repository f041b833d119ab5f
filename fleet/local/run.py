"""``up`` on this machine: everything in the foreground, until Ctrl-C or ``down`` from another shell."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from fleet.description import Fleet
from fleet.following import Follower, followed
from fleet.keys import Secrets
from fleet.launcher import LaunchFailed
from fleet.local.desk import keep_desk, sole
from fleet.local.gpus import Gpus, visible_gpus
from fleet.local.launcher import HOST, LocalLauncher
from fleet.supervisor import Supervisor

log = logging.getLogger("fleet")


def run_here(fleet: Fleet, secrets: Secrets, folder: Path) -> None:
    """Returns when it has drained. Raises ``UpAlready``, ``LaunchFailed``, or ``CannotStart`` for a gateway that cannot
    be started, once all else has ended."""
    with sole(folder):
        log_of_all = _Lines(max(len(f"{name}-00") for name in (*fleet.pools, *fleet.gateways, *fleet.relays)))
        launcher = LocalLauncher(fleet, secrets, Gpus(visible_gpus()), folder, log_of_all.write)
        supervisor = Supervisor(fleet, launcher, followed(fleet, secrets))
        asyncio.run(Running(supervisor, Follower(supervisor, secrets, HOST)).run(folder))


class Running:
    """Implements ``fleet.local.desk.Orders``."""

    def __init__(self, supervisor: Supervisor, follower: Follower) -> None:
        self._supervisor = supervisor
        self._follower = follower
        self._told_to_end = asyncio.Event()
        self._ended = asyncio.Event()

    async def run(self, folder: Path) -> None:
        main = asyncio.current_task()
        assert main is not None  # noqa: S101 # this is a coroutine
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled, main)
        desk = asyncio.create_task(keep_desk(folder, self), name="desk")
        try:
            await self._until_told()
        finally:
            await self._supervisor.down()
            self._ended.set()
            desk.cancel()
            await asyncio.wait([desk])

    async def status(self) -> Mapping[str, object]:
        return await self._supervisor.status()

    async def scale(self, pool: str, servers: int) -> None:
        if self._told_to_end.is_set():
            raise LaunchFailed("the fleet is ending")
        await self._supervisor.scale(pool, servers)

    async def end(self) -> None:
        self._told_to_end.set()
        await self._ended.wait()

    async def _until_told(self) -> None:
        """Raises what ``up`` and ``watch`` do."""
        await self._supervisor.up()
        watching = asyncio.create_task(self._supervisor.watch(), name="watch")
        following = asyncio.create_task(self._follower.run(), name="follow")
        told = asyncio.create_task(self._told_to_end.wait(), name="told to end")
        await asyncio.wait([watching, following, told], return_when=asyncio.FIRST_COMPLETED)
        for task in (watching, following):
            if task.done():
                await task
            task.cancel()
        told.cancel()

    def _signalled(self, main: asyncio.Task[None]) -> None:
        if self._told_to_end.is_set():
            log.warning("told twice: what still runs is killed")
            main.cancel()
        else:
            log.info("draining; once more kills what still runs")
            self._told_to_end.set()


class _Lines:
    """One log of all processes, on stderr."""

    def __init__(self, width: int) -> None:
        self._width = width

    def write(self, name: str, line: str) -> None:
        with suppress(BrokenPipeError):  # whoever read it has gone, which is no reason to stop
            sys.stderr.write(f"{name:<{self._width}} | {line}\n")
            sys.stderr.flush()

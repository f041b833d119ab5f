"""Child processes that are started again when they end. ``--local`` and fleets keep their servers so."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

from wire.errors import USER_MISTAKE

STOP_SECONDS = 5.0
"""Between the polite and the final request to end."""

FIRST_DELAY, LAST_DELAY = 0.5, 10.0
"""Seconds until a process that ended is started again, doubled each time …"""

SOUND_SECONDS = 30.0
"""… unless it had run for so long."""

LONGEST_LINE = 1 << 16
"""Bytes of one line of output; a longer one is handed on in pieces."""

log = logging.getLogger(__name__)


class CannotStart(Exception):
    """The process ended with ``USER_MISTAKE``: starting it again changes nothing. The text is for the operator."""


class Condition(StrEnum):
    WAITING = "waiting"
    """To be started, for the first time or again."""
    RUNNING = "running"
    REFUSED = "refused"
    """It cannot be started as it is; its log says why."""
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Program:
    """What a child process runs."""

    name: str
    """For people."""
    command: Sequence[str]
    environment: Mapping[str, str] | None = None
    """Instead of this process's own."""
    stop_seconds: float = STOP_SECONDS
    """After SIGTERM, until it is killed."""


class Child:
    """Keeps one program running. It never outlives this process (on Linux also after ``kill -9``: see ``tether``)."""

    def __init__(
        self,
        program: Program,
        on_line: Callable[[str], None] | None = None,
        on_change: Callable[[Child], None] = lambda _: None,
    ) -> None:
        """``on_line`` gets what the program writes, which goes where this process's own output goes without it.
        ``on_change`` is called with each new condition."""
        self.program = program
        self.condition = Condition.WAITING
        self.pid: int | None = None
        self.starts = 0
        self._on_line = on_line
        self._on_change = on_change

    async def run(self) -> NoReturn:
        """Until cancelled; then the program is stopped. Raises ``CannotStart``."""
        clock = asyncio.get_running_loop().time
        delay = FIRST_DELAY
        try:
            while True:
                began = clock()
                status = await self._run_once()
                if status == USER_MISTAKE:
                    self._become(Condition.REFUSED)
                    raise CannotStart(f"{self.program.name} cannot be started; its message is above")
                if clock() - began > SOUND_SECONDS:
                    delay = FIRST_DELAY
                log.warning("%s ended with status %d; it starts again in %g s", self.program.name, status, delay)
                self._become(Condition.WAITING)
                await asyncio.sleep(delay)
                delay = min(2 * delay, LAST_DELAY)
        except asyncio.CancelledError:
            self._become(Condition.STOPPED)
            raise

    async def _run_once(self) -> int:
        """The exit status."""
        program = self.program
        tether = [sys.executable, "-m", "wire.tether", str(os.getpid())]
        piped = self._on_line is not None
        process = await asyncio.create_subprocess_exec(
            *tether,
            *program.command,
            stdin=DEVNULL,
            stdout=PIPE if piped else None,
            stderr=STDOUT if piped else None,
            limit=LONGEST_LINE,
            env=program.environment,
            # In a session of its own, Ctrl-C in the terminal reaches this process alone, which then decides.
            start_new_session=True,
        )
        reading = asyncio.create_task(self._read(process), name=f"output of {program.name}")
        try:
            self.pid = process.pid
            self.starts += 1
            self._become(Condition.RUNNING)
            return await process.wait()
        finally:
            await _stop(process, program.stop_seconds)
            self.pid = None
            # A process that it left behind may keep the pipe open.
            await asyncio.wait({reading}, timeout=STOP_SECONDS)
            reading.cancel()

    async def _read(self, process: Process) -> None:
        while self._on_line is not None and process.stdout is not None:
            try:
                line = await process.stdout.readuntil()
            except asyncio.IncompleteReadError as end:
                line = end.partial
                if not line:
                    return
            except asyncio.LimitOverrunError as long:
                line = await process.stdout.readexactly(long.consumed)
            self._on_line(line.decode(errors="replace").rstrip("\n"))

    def _become(self, condition: Condition) -> None:
        self.condition = condition
        self._on_change(self)


async def _stop(process: Process, seconds: float) -> None:
    """Whoever cancels this has no more patience."""
    if process.returncode is not None:
        return
    process.terminate()
    # No asyncio.timeout: in a task that is being cancelled those of Python 3.11.3 and older raise CancelledError.
    end = asyncio.create_task(process.wait())
    try:
        await asyncio.wait({end}, timeout=seconds)
    finally:
        if not end.done():
            process.kill()
    await end

"""Processes that are started again whenever they end, as any supervisor would do, with a record of when and why."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

STOP_SECONDS = 30.0
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("DISAGFUSION_", "OTEL_"))}


@dataclass
class Member:
    """A gateway or a stage server."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    pause: Callable[[], float]
    """Seconds until it is started again."""
    process: asyncio.subprocess.Process | None = None
    told: str = ""
    """Why its present process is expected to end, empty if it is not."""
    starts: int = 0
    complaints: list[str] = field(default_factory=list)
    on_end: Callable[[], None] = lambda: None
    may_end: Callable[[int], bool] = lambda _: False
    """Whether it may end by itself with this status."""
    is_stopping: bool = False
    frozen: int = 0
    limited_pids: set[int] = field(default_factory=set)

    async def keep(self) -> None:
        while not self.is_stopping:
            with self.log.open("ab") as output:
                self.process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", *self.command, env={**CLEAN, **self.environment}, stdout=output, stderr=output
                )
            self.starts += 1
            status = await self.process.wait()
            self._ended(status)
            if not self.is_stopping:
                await asyncio.sleep(self.pause())

    def _ended(self, status: int) -> None:
        if not self.told and not self.is_stopping and not self.may_end(status):
            self.complaints.append(f"{self.name} ended by itself with status {status}")
        elif self.told and status not in (
            0,
            -signal.SIGKILL,
            -signal.SIGTERM,
        ):  # the last: before Python had begun to listen
            self.complaints.append(f"{self.name} ended with status {status} when it was to end: {self.told}")
        self.told, self.frozen, self.process = "", 0, None
        self.on_end()

    @property
    def pid(self) -> int | None:
        return None if self.process is None or self.process.returncode is not None else self.process.pid

    def send(self, number: signal.Signals, why: str = "") -> bool:
        """False where there is no process."""
        if self.process is None or self.pid is None:
            return False
        self.told = self.told or why
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        return True

    async def freeze(self, seconds: float) -> bool:
        """Several at once add up: it goes on when the last is over."""
        process = self.process
        if not self.send(signal.SIGSTOP):
            return False
        self.frozen += 1
        await asyncio.sleep(seconds)
        if self.process is process:
            self.frozen -= 1
            if not self.frozen:
                self.send(signal.SIGCONT)
        return True

    async def limited(self, kind: int, limit: int, seconds: float) -> bool:
        """For a while its process may have so many of something. Not twice at a time: the end of one would be lost."""
        pid = self.pid
        if pid is None or pid in self.limited_pids:
            return False
        self.limited_pids.add(pid)
        with suppress(ProcessLookupError):
            soft, hard = resource.prlimit(pid, kind)
            resource.prlimit(pid, kind, (limit, hard))
            await asyncio.sleep(seconds)
            if self.pid == pid:
                resource.prlimit(pid, kind, (soft, hard))
            self.limited_pids.discard(pid)
            return True
        return False

    def open_files(self) -> int:
        with suppress(FileNotFoundError):
            return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208 # names alone
        return 0

    def use(self) -> tuple[int, int]:
        """Open files and resident bytes; zeros where there is no process."""
        if self.pid is None:
            return 0, 0
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            return process.num_fds(), process.memory_info().rss
        return 0, 0

    async def stop(self) -> None:
        """For good."""
        self.is_stopping = True
        if self.pid is None:
            return
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM, "the end")
        process = self.process
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait() if process else None
                return
        self.complaints.append(f"{self.name} did not end within {STOP_SECONDS:g} s of SIGTERM")
        self.send(signal.SIGKILL)

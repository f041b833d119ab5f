"""A launcher that starts nothing, and a fleet for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from fleet.description import Fleet
from fleet.launcher import Standing
from fleet.programs import Member
from wire.children import Condition

FLEET = Fleet.model_validate(
    {
        "models": {"shapes": {"engine": "emulated", "profile": "tiny-shapes-cpu"}},
        "pools": {"a": {"models": ["shapes"], "min": 1, "max": 3}, "b": {"models": ["shapes"], "min": 0, "max": 1}},
    }
)


class FakeLauncher:
    """Implements ``fleet.launcher.Launcher``: all run at once, and end at once unless ``ending`` is cleared."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.standings: dict[str, Standing] = {}
        self.changes: asyncio.Queue[Standing] = asyncio.Queue()
        self.ending = asyncio.Event()
        self.ending.set()

    async def start(self, member: Member) -> None:
        assert member.name not in self.standings
        self.said.append(f"start {member.name}")
        self.standings[member.name] = Standing(member.name, Condition.RUNNING, "here", 1)

    async def stop(self, member: Member, *, drain: bool = True) -> None:
        self.said.append(f"{'drain' if drain else 'end'} {member.name}")
        await self.ending.wait()
        del self.standings[member.name]

    async def list(self) -> Sequence[Standing]:
        return list(self.standings.values())

    async def watch(self) -> AsyncIterator[Standing]:
        while True:
            yield await self.changes.get()

    def refuse(self, name: str) -> None:
        self.standings[name] = Standing(name, Condition.REFUSED, "here", 1)
        self.changes.put_nowait(self.standings[name])

"""Keeps as many servers of each pool as are wanted, whatever launches them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence, Set
from itertools import islice
from typing import NoReturn

from fleet.description import Fleet
from fleet.launcher import Launcher, LaunchFailed, Standing
from fleet.programs import Member, gateways, relays, server
from fleet.table import nearest
from wire.children import CannotStart, Condition

log = logging.getLogger(__name__)


class Supervisor:
    def __init__(self, fleet: Fleet, launcher: Launcher, followed: Sequence[str] = ()) -> None:
        """``followed``: pools that ``follow`` is for, and not ``scale``."""
        self.fleet = fleet
        self.followed = followed
        self._launcher = launcher
        self._wanted = {name: set(range(1, pool.min + 1)) for name, pool in fleet.pools.items()}
        """Pool → numbers of its servers."""
        self._ending: dict[Member, asyncio.Task[None]] = {}
        """Servers that drain while other changes go on."""
        self._turn = asyncio.Lock()  # one change at a time: a number that drains may be wanted again

    async def up(self) -> None:
        """Start relays, gateways and the least servers of every pool; keep what runs already.

        Raises ``LaunchFailed``.
        """
        async with self._turn:
            running = {standing.name for standing in await self._launcher.list()}
            for each in (*relays(self.fleet), *gateways(self.fleet)):
                if each.name not in running:
                    await self._launcher.start(each)
            for pool, wanted in self._wanted.items():
                wanted.update(member.index for member in self._of(pool) if member.name in running)
                await self._start_wanted(pool)

    async def watch(self) -> NoReturn:
        """Say what happens. Raises ``CannotStart`` when that is a gateway or a relay which its operator has to help."""
        fixed = {each.name: each.kind for each in (*relays(self.fleet), *gateways(self.fleet))}
        async for standing in self._launcher.watch():
            if standing.condition is Condition.REFUSED:
                if kind := fixed.get(standing.name):
                    raise CannotStart(f"the {kind} {standing.name!r} cannot be started; its message is above")
                log.error("%s cannot be started; its message is above. Scale its pool to try again", standing.name)
            elif standing.starts > 1 and standing.condition is Condition.RUNNING:
                log.warning("%s runs again, at %s", standing.name, standing.where)
        raise AssertionError("launchers are watched for ever")

    async def scale(self, pool: str, servers: int) -> None:
        """Those with the highest numbers go first. Returns when they have drained. Raises ``LaunchFailed``."""
        found = self.fleet.pools.get(pool)
        if found is None:
            raise LaunchFailed(f"there is no pool {pool!r}{nearest(pool, self.fleet.pools)}")
        if pool in self.followed:
            raise LaunchFailed(
                f'{pool} is scaled by prediction: write scaled_by = "hand" in its table to do it yourself'
            )
        if not found.min <= servers <= found.most:
            raise LaunchFailed(f"{pool} has {found.min} to {found.most} servers, not {servers}: see min and max")
        async with self._turn:
            before = sorted(self._wanted[pool])
            self._wanted[pool] = set(before[:servers])
            self._add(pool, servers)
            await self._start_wanted(pool)
            await self._stop([server(pool, index) for index in before[servers:]])

    async def follow(self, pool: str, servers: int, drain: Set[str]) -> None:
        """So many, beside those named in ``drain``: these go, and nobody waits for it. Within the pool's limits.
        Raises ``LaunchFailed``."""
        async with self._turn:
            wanted = self._wanted[pool]
            least = self.fleet.pools[pool].min
            going = sorted(index for index in wanted if server(pool, index).name in drain)[: len(wanted) - least]
            wanted.difference_update(going)
            for index in going:
                self._end(server(pool, index))
            self._add(pool, servers)
            await self._start_wanted(pool, again=False)

    async def down(self) -> None:
        """Gateways first: they take no more requests, and finish what they can while there are servers for it, and
        relays."""
        async with self._turn:
            for ending in self._ending.values():
                ending.cancel()  # what it drains is ended below
            await asyncio.gather(*self._ending.values(), return_exceptions=True)
            running = {standing.name for standing in await self._launcher.list()}
            await self._stop([each for each in gateways(self.fleet) if each.name in running])
            await self._stop([each for each in self._servers() if each.name in running], drain=False)
            await self._stop([each for each in relays(self.fleet) if each.name in running], drain=False)

    async def status(self) -> Mapping[str, object]:
        """As JSON."""
        standings = {standing.name: standing for standing in await self._launcher.list()}
        return {
            "name": self.fleet.name,
            "gateways": [_told(each, standings) for each in gateways(self.fleet)],
            "relays": [_told(each, standings) for each in relays(self.fleet)],
            "pools": [
                {
                    "name": name,
                    "wanted": len(self._wanted[name]),
                    "min": pool.min,
                    "max": pool.most,
                    "device_class": pool.device_class,
                    "labels": dict(pool.labels),
                    "servers": [_told(each, standings) for each in self._of(name) if each.name in standings],
                }
                for name, pool in self.fleet.pools.items()
            ],
        }

    def _add(self, pool: str, servers: int) -> None:
        """Until so many are wanted: those with the lowest numbers that are free."""
        wanted, ending = self._wanted[pool], {member.name for member in self._ending}
        free = (each.index for each in self._of(pool) if each.index not in wanted and each.name not in ending)
        wanted.update(islice(free, max(0, servers - len(wanted))))

    async def _start_wanted(self, pool: str, *, again: bool = True) -> None:
        """``again``: those too that need their operator, who may have seen to them."""
        standings = {standing.name: standing.condition for standing in await self._launcher.list()}
        for member in (server(pool, index) for index in sorted(self._wanted[pool])):
            condition = standings.get(member.name)
            if condition is Condition.REFUSED and again:
                await self._launcher.stop(member)
                condition = None
            if condition is None:
                await self._launcher.start(member)

    def _end(self, member: Member) -> None:
        async def stop() -> None:
            try:
                await self._launcher.stop(member)
            except LaunchFailed as error:
                log.error("%s: %s", member.name, error)  # noqa: TRY400 # the text is for the operator
            finally:
                del self._ending[member]

        log.info("%s goes: the gateway needs it no longer", member.name)
        self._ending[member] = asyncio.create_task(stop(), name=f"stop {member.name}")

    async def _stop(self, members: Sequence[Member], *, drain: bool = True) -> None:
        async with asyncio.TaskGroup() as tasks:
            for member in members:
                tasks.create_task(self._launcher.stop(member, drain=drain), name=f"stop {member.name}")

    def _of(self, pool: str) -> list[Member]:
        return [server(pool, index) for index in range(1, self.fleet.pools[pool].most + 1)]

    def _servers(self) -> list[Member]:
        return [member for pool in self.fleet.pools for member in self._of(pool)]


def _told(member: Member, standings: Mapping[str, Standing]) -> Mapping[str, object]:
    standing = standings.get(member.name)
    if standing is None:
        return {"name": member.name, "condition": Condition.STOPPED}
    return {
        "name": member.name,
        "condition": standing.condition,
        "where": standing.where,
        "restarts": max(standing.starts - 1, 0),
    }

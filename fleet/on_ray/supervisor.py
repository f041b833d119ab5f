"""The detached actor that a fleet on Ray goes on with when the command that started it has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import ray

from fleet.description import Fleet
from fleet.following import Follower, followed
from fleet.keys import Secrets
from fleet.launcher import LaunchFailed
from fleet.on_ray.launcher import RayLauncher
from fleet.supervisor import Supervisor
from wire.children import CannotStart
from wire.security import is_loopback

log = logging.getLogger(__name__)


class FleetActor:
    """When Ray starts it anew, it finds the actors that run by their names, and goes on with them."""

    def __init__(self, fleet: Fleet, secrets: Secrets) -> None:
        self._node: str = ray.util.get_node_ip_address()
        launcher = RayLauncher(fleet, secrets, self._node)
        self._supervisor = Supervisor(fleet, launcher, followed(fleet, secrets))
        self._follower = Follower(self._supervisor, secrets, self._node)
        self._begun: asyncio.Task[None] | None = None
        self._beside: tuple[asyncio.Task[None], ...] = ()

    async def up(self) -> str:
        """The address of the node with the gateways."""
        await self._begin()
        return self._node

    async def status(self) -> Mapping[str, object]:
        await self._begin()
        return await self._supervisor.status()

    async def scale(self, pool: str, servers: int) -> None:
        await self._begin()
        await self._supervisor.scale(pool, servers)

    async def down(self) -> None:
        for task in self._beside:
            task.cancel()
        await self._supervisor.down()

    async def _begin(self) -> None:
        """Once in a life, whoever asks first."""
        fleet = self._supervisor.fleet
        if not (is_loopback(f"tcp://{self._node}:1") or fleet.allow_plaintext or fleet.is_encrypted):
            raise LaunchFailed(
                f"the cluster's machines reach each other at addresses such as {self._node}, where sockets would be "
                "unencrypted: give keys.curve_gateways and keys.curve_servers, or write allow_plaintext = true if that "
                "network is private"
            )
        if self._begun is None:
            self._begun = asyncio.create_task(self._supervisor.up(), name="up")
            self._beside = (
                asyncio.create_task(self._watch(), name="watch"),
                asyncio.create_task(self._follow(), name="follow"),
            )
        await self._begun

    async def _watch(self) -> None:
        try:
            await self._supervisor.watch()
        except CannotStart as error:  # there is no foreground that could end
            log.error("%s", error)  # noqa: TRY400 # the text is for the operator

    async def _follow(self) -> None:
        try:
            await self._follower.run()
        except Exception:  # nobody waits for this task
            log.exception("the pools keep their servers from now on")
            raise

"""The autoscaler's shell: asks it every few seconds, and tells launchers and operators what it wants.

It starts and stops nobody, but for servers whose machine is about to be taken away: those it tells to finish in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import NoReturn

from gateway.service.operator import Levers
from scheduler import events as ev
from scheduler.scaling.records import PoolOrder
from scheduler.scaling.scaler import Autoscaler
from scheduler.view import View
from wire.to_stage import Shutdown
from wire.types import Role, ServerId, server_name


class Scaling:
    def __init__(self, autoscaler: Autoscaler, view: View, levers: Levers) -> None:
        self._autoscaler = autoscaler
        self._view = view
        self._levers = levers

    async def run(self) -> NoReturn:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._autoscaler.interval_seconds)
            await self._levers.order(self._decide)
            for order in self._autoscaler.latest:
                for server in order.lost:
                    await self._levers.order(partial(self._stop, server))

    def told(self) -> Mapping[str, object]:
        """For launchers and people."""
        return {"pools": {order.pool.name: _told(order) for order in self._autoscaler.latest}}

    def _decide(self) -> None:
        """In a turn of the dispatcher's, so that the scheduler's view is whole."""
        self._autoscaler.decide(asyncio.get_running_loop().time())

    def _stop(self, name: ServerId) -> ev.Event | None:
        server = self._view.servers.get(name)
        if server is None or server.is_leaving:
            return None
        self._levers.send(name, Shutdown())
        return ev.ServerLeaving(name)


def _told(order: PoolOrder) -> dict[str, object]:
    pool = order.pool
    return {
        "model": pool.model,
        "roles": [role.value for role in Role if role in pool.roles],
        "min": pool.min,
        "max": pool.max,
        "wanted": order.wanted,
        "ready": order.ready,
        "starting": order.starting,
        "drain": [server_name(server) for server in order.drain],
        "about_to_be_lost": [server_name(server) for server in order.lost],
        "cold_start_seconds": round(order.cold_start_seconds, 1),
        "cold_starts": {server_name(server): round(took, 1) for server, took in order.cold_starts.items()},
        "why": order.why,
    }

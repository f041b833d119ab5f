"""Which of their addresses the gateway reaches stage servers by: their own, or one behind a relay."""

from __future__ import annotations

import asyncio

import msgspec

from gateway.stages.prober import Prober
from gateway.stages.result_fetcher import ResultFetcher
from wire.dial import dial
from wire.doors import Doors
from wire.errors import InputLost, Loss
from wire.paths import Paths, addresses, holder_of
from wire.to_stage import InputRef, TryPeer

LOST_ON_THE_WAY = frozenset({Loss.UNREACHABLE, Loss.STALLED})


class Pathfinder:
    """Finds out by which address a server is reached when it is probed, and fetches by it."""

    def __init__(self, prober: Prober, fetcher: ResultFetcher, doors: Doors) -> None:
        self._prober = prober
        self._fetcher = fetcher
        self._doors = doors
        self._paths = Paths()

    async def probe(self, peer: TryPeer) -> str:
        """Each address and what happened there; empty where one of them leads to ``peer``."""
        faults = []
        for each in addresses(peer):
            fault = await self._try(each)
            if not fault:
                self._paths.note(peer.server, each.endpoint)
                return ""
            faults.append(fault)
        self._paths.forget(peer.server)
        return "; ".join(faults)

    async def _try(self, peer: TryPeer) -> str:
        door = self._doors.to(peer.endpoint)
        if door == peer.endpoint:
            return await self._prober.probe(peer)
        if fault := await asyncio.to_thread(dial, peer.endpoint):  # of the relay, which says more than a closed door
            return f"{peer.endpoint}: {fault}"
        fault = await self._prober.probe(msgspec.structs.replace(peer, endpoint=door))
        return fault.replace(door, peer.endpoint)

    async def fetch(self, ref: InputRef) -> bytes:
        """The picture behind ``ref``. Raises ``InputLost``."""
        if not ref.relays:
            return await self._fetcher.fetch(ref)
        try:
            return await self._by_path(ref)
        except InputLost as error:
            if error.reason not in LOST_ON_THE_WAY or not self._paths.known(ref.server):
                raise
        self._paths.forget(ref.server)
        return await self._by_path(ref)

    async def _by_path(self, ref: InputRef) -> bytes:
        if not self._paths.known(ref.server) and (fault := await self.probe(holder_of(ref))):
            raise InputLost(ref.handle, Loss.UNREACHABLE, fault)
        endpoint = self._doors.to(self._paths.known(ref.server))
        return await self._fetcher.fetch(msgspec.structs.replace(ref, endpoint=endpoint, relays=()))

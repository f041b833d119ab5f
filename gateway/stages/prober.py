"""Tries whether a stage server's data socket can be reached from here, and is the one expected."""

from __future__ import annotations

import asyncio

from gateway.stages.sockets import Dealer, Sockets, Unreachable
from wire.dial import DIAL_SECONDS, HUNG_UP, MUTE, dial
from wire.errors import WireError
from wire.to_stage import TryPeer
from wire.transfer import MAX_ANSWER_BYTES, decode_answer, probe, recognised

AT_ONCE = 16
"""Further ones wait."""


class Prober:
    def __init__(self, sockets: Sockets, seconds: float = DIAL_SECONDS) -> None:
        self._sockets = sockets
        self._seconds = seconds
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def probe(self, peer: TryPeer) -> str:
        """The address and what happened there; empty where ``peer`` answers."""
        async with self._turns:
            fault = await asyncio.to_thread(dial, peer.endpoint, self._seconds) or await self._greet(peer)
        return f"{peer.endpoint}: {fault}" if fault else ""

    async def _greet(self, peer: TryPeer) -> str:
        try:
            dealer = self._sockets.dealer(peer.endpoint, peer.public_key, MAX_ANSWER_BYTES, watched=True)
        except Unreachable as error:
            return str(error)
        tasks = (asyncio.create_task(_answer(dealer)), asyncio.create_task(dealer.hung_up()))
        try:
            dealer.send(probe(1, peer.server))
            done, _ = await asyncio.wait(tasks, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                return MUTE
            return tasks[0].result() if tasks[0] in done else HUNG_UP
        finally:
            for task in tasks:
                task.cancel()
            dealer.close()


async def _answer(dealer: Dealer) -> str:
    try:
        return recognised(decode_answer(await dealer.receive())[0])
    except WireError as error:
        return str(error)

"""The shell around ``rules``: asks the other gateways once a second, and sends servers where they belong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from gateway.cells.own import Departures, OwnCell
from gateway.cells.rules import Move, Steadiness, Why
from gateway.service.interfaces import NoCapacity, ServiceError
from gateway.stages.sockets import Dealer, Sockets
from scheduler import events as ev
from wire.control_codec import MAX_TO_STAGE_BYTES, decode_to_stage, encode
from wire.errors import WireError
from wire.to_gateway import AskCell
from wire.to_stage import CellState, MoveTo, ToStage
from wire.types import ModelKey, ServerId

ASK_SECONDS = 1.0
DRAINING_SECONDS = 0.1
"""Between two looks for servers that may go, at the end."""

SILENCE_SECONDS = 3.5
"""After which another gateway counts as gone."""

TURNED_AWAY = "This gateway has lost the servers of a stage, and others have them: send the request again."

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Levers:
    order: Callable[[Callable[[], tuple[ev.Event, ...]]], Awaitable[None]]
    """See ``Dispatcher.order``."""
    send: Callable[[ServerId, ToStage], None]
    turn_away: Callable[[ModelKey, ServiceError], None]
    """See ``Dispatcher.turn_away``."""


@dataclass(slots=True)
class _Peer:
    endpoint: str
    dealer: Dealer
    state: CellState | None = None
    heard: float = float("-inf")
    complaint: str = ""
    """Why it is left out of account; logged once."""


class Keeper:
    def __init__(self, own: OwnCell, peers: Sequence[str], sockets: Sockets, public_key: str, levers: Levers) -> None:
        """``peers``: control endpoints of the other gateways, its own among them or not. Raises ``Unreachable``."""
        self._own = own
        self._levers = levers
        identity = f"~cell {own.name}/{own.gateway}"
        self._peers = [
            _Peer(peer, sockets.dealer(peer, public_key, MAX_TO_STAGE_BYTES, identity=identity)) for peer in peers
        ]
        self._steadiness = Steadiness()
        self._wake = asyncio.Event()

    async def run(self) -> NoReturn:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for peer in self._peers:
                tasks.create_task(self._listen(peer), name=f"cell at {peer.endpoint}")
            tasks.create_task(self._look(), name="cells")
        raise AssertionError("the tasks above never return")

    def drain(self) -> None:
        """From now on servers go to the others as they are needed here no longer."""
        self._own.is_draining = True
        self._wake.set()

    @property
    def is_drained(self) -> bool:
        """Nobody is here, or on the way, who could be taken over by another gateway."""
        has_heirs = any(not state.draining for state in self.others())
        return self._own.leaving == 0 and (self._own.is_empty or not has_heirs)

    def served_elsewhere(self) -> bool:
        return not self._own.ready and any(state.ready for state in self.others())

    def others(self) -> list[CellState]:
        """Gateways that have answered of late."""
        return [state for _, state in self._heard()]

    def _heard(self) -> Iterator[tuple[str, CellState]]:
        """With their endpoints."""
        now = asyncio.get_running_loop().time()
        for peer in self._peers:
            if peer.state is not None and now - peer.heard < SILENCE_SECONDS:
                yield peer.endpoint, peer.state

    async def _listen(self, peer: _Peer) -> NoReturn:
        while True:
            for frame in await peer.dealer.receive():
                try:
                    message = decode_to_stage(frame)
                except WireError as error:
                    self._complain(peer, f"its answer cannot be read: {error}")
                    continue
                match message:
                    case CellState(gateway=gateway) if gateway == self._own.gateway:
                        pass  # a list of all gateways may be given to each of them
                    case CellState(name=name) if name == self._own.name:
                        self._complain(peer, f"it is named {name!r} as well: set DISAGFUSION_CELL to another name")
                    case CellState():
                        peer.state, peer.heard = message, asyncio.get_running_loop().time()
                        peer.complaint = ""
                    case _:
                        self._complain(peer, "it knows nothing of cells: an older version")

    def _complain(self, peer: _Peer, why: str) -> None:
        if peer.complaint != why:
            peer.complaint = why
            log.warning("the gateway at %s is left out of account: %s", peer.endpoint, why)

    async def _look(self) -> NoReturn:
        question = [encode(AskCell(name=self._own.name))]
        while True:
            for peer in self._peers:
                peer.dealer.send(question)  # one that is not there will be asked again
            await self._act()
            seconds = DRAINING_SECONDS if self._own.is_draining else ASK_SECONDS
            woken = asyncio.create_task(self._wake.wait())
            await asyncio.wait({woken}, timeout=seconds)
            woken.cancel()
            self._wake.clear()

    async def _act(self) -> None:
        now = asyncio.get_running_loop().time()
        moves = list(self._steadiness.now_of(self._own.state(), self.others(), now))
        for move in moves:
            if move.why is Why.GATHER and self.served_elsewhere():
                for model in {model for model, _ in move.holds}:
                    self._levers.turn_away(ModelKey(model), NoCapacity(TURNED_AWAY, retry_after_seconds=1.0))
        if moves:
            # In one turn: with each alone the whole cell would be looked through as often as servers go.
            await self._levers.order(lambda: tuple(self._send_all(moves, now)))

    def _send_all(self, moves: Sequence[Move], now: float) -> Iterator[ev.Event]:
        departures = self._own.departures()
        # A turn or more after they were planned: a gateway may have a new name since, may end, or be gone.
        endpoints = {state.name: endpoint for endpoint, state in self._heard() if not state.draining}
        for move in moves:
            endpoint = endpoints.get(move.target)
            if endpoint is not None and (self._own.is_draining or departures.safe(move.holds)):
                yield from self._send(move, endpoint, departures)
                self._steadiness.acted(move, now)

    def _send(self, move: Move, endpoint: str, departures: Departures) -> Iterator[ev.Event]:
        process = departures.choose(move.holds, move.target)
        if process is None:
            return
        log.info("%s goes to %s at %s: %s", process[0].id, move.target, endpoint, move.why)
        for server in process:
            self._levers.send(server.id, MoveTo(endpoint=endpoint))
        yield ev.ServerLeaving(process[0].id)

"""What a gateway hears of another one between planning a move and ordering it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from gateway.cells import keeper, rules
from gateway.cells.keeper import Keeper, Levers
from scheduler import events as ev
from tests.cells.conftest import Site
from wire.control_codec import encode
from wire.to_stage import CellState, MoveTo, ToStage
from wire.types import ServerId

PATIENCE = 60.0
THERE = CellState(name="there", gateway="g2")
Judge = Callable[[], tuple[ev.Event, ...]]


class Peer:
    """Another gateway's socket."""

    def __init__(self, *said: CellState) -> None:
        self.says: asyncio.Queue[CellState] = asyncio.Queue()
        self._told = False
        """Something, which was taken note of by the time the next is waited for."""
        for state in said:
            self.says.put_nowait(state)

    async def heard(self) -> None:
        """All that it says."""
        await self.says.join()

    async def receive(self) -> list[bytes]:
        if self._told:
            self.says.task_done()
        self._told = True
        return [encode(await self.says.get())]

    def send(self, frames: Sequence[bytes]) -> bool:
        return True


class Sockets:
    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def dealer(self, *_: object, **__: object) -> Peer:
        return self._peer


class Dispatcher:
    """Keeps orders until they are carried out."""

    def __init__(self) -> None:
        self.sent: list[tuple[ServerId, ToStage]] = []
        self._orders: asyncio.Queue[tuple[Judge, asyncio.Future[None]]] = asyncio.Queue()

    async def order(self, judge: Judge) -> None:
        done = asyncio.get_running_loop().create_future()
        self._orders.put_nowait((judge, done))
        await done

    async def next(self) -> Callable[[], tuple[ev.Event, ...]]:
        judge, done = await self._orders.get()

        def carry_out() -> tuple[ev.Event, ...]:
            done.set_result(None)
            return judge()

        return carry_out


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(keeper, "SILENCE_SECONDS", float("inf"))  # however slow the machine is
    monkeypatch.setattr(rules, "WAITS", dict.fromkeys(rules.Why, 0.0))


@pytest.mark.parametrize(
    "news", [CellState(name="renamed", gateway="g3"), CellState(name="there", gateway="g2", draining=True)]
)
async def test_a_move_is_not_made_where_its_target_is_no_more_and_is_planned_anew(site: Site, news: CellState) -> None:
    for name in ("s1", "s2"):
        site.join(name)
    peer, dispatcher = Peer(THERE), Dispatcher()
    levers = Levers(dispatcher.order, lambda *told: dispatcher.sent.append(told), lambda _model, _error: None)
    cells = Keeper(site.cell, ["tcp://there:5600"], Sockets(peer), "", levers)  # type: ignore[arg-type]
    async with asyncio.timeout(PATIENCE):
        running = asyncio.create_task(cells.run())
        carry_out = await dispatcher.next()
        peer.says.put_nowait(news)
        await peer.heard()
        assert cells.others() == [news]
        assert carry_out() == ()
        assert dispatcher.sent == []
        back = CellState(name=news.name, gateway="g4")
        peer.says.put_nowait(back)
        again = (await dispatcher.next())()
    running.cancel()
    await asyncio.wait([running])
    (left,) = again
    assert isinstance(left, ev.ServerLeaving)
    assert dispatcher.sent == [(left.server, MoveTo(endpoint="tcp://there:5600"))]

"""Who decides in the full simulator, beside ``scheduler.scaling``: the reactive rules, and the plan that knows all.

All of them tell admission what is on its way, drain whoever has least to finish, and replace a machine that is about to
be lost as soon as that is announced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.autoscaling import foresight
from benchmarks.autoscaling.quick import START
from benchmarks.autoscaling.reactive import GRID, Seen
from scheduler import events as ev
from scheduler.coming import Expected
from scheduler.scaling.drains import least_busy
from scheduler.scaling.pools import Pool
from scheduler.sim.launcher import Scaling, predicted
from scheduler.sim.setup import Scenario
from scheduler.state import Server
from scheduler.view import View
from wire.types import ModelKey, ServerId

INTERVAL = 5.0
LONGEST = 60.0
"""Seconds before its loss at which a server stops taking work: the longest request's, and some."""


@dataclass(frozen=True, slots=True)
class Wish:
    pool: Pool
    wanted: int
    drain: Sequence[ServerId]


class Wanted(Protocol):
    def wanted(self, seen: Seen) -> int: ...


class Ruled:
    """Lets a rule decide about the only pool of a scenario."""

    interval_seconds = INTERVAL

    def __init__(self, scenario: Scenario, view: View, rule: Wanted):
        (setup,) = scenario.pools
        self._pool, self._target = setup.pool, setup.server.target
        self._view, self._rule = view, rule
        self._ordered: list[float] = []
        self._drained: list[ServerId] = []
        self._doomed: dict[ServerId, float] = {}

    def note(self, event: ev.Event, now: float) -> None:
        match event:
            case ev.ServerJoined() if self._ordered:
                self._ordered.pop(0)
            case ev.LossAnnounced(server=server, within=within):
                self._doomed[server] = now + within
            case _:
                pass

    def decide(self, now: float) -> list[Wish]:
        staying = self._staying()
        wanted = min(self._pool.max, max(self._pool.min, self._rule.wanted(self._seen(staying, now))))
        self._ordered += [now] * (wanted - len(staying) - len(self._ordered))
        for _ in range(len(staying) + len(self._ordered) - wanted):
            if self._ordered:
                self._ordered.pop()
            elif (chosen := least_busy(self._staying(), now)) is not None:
                self._drained.append(chosen.id)
        ending = [server for server, at in self._doomed.items() if at - now < LONGEST]
        return [Wish(self._pool, wanted, [*self._drained, *ending])]

    def expected(self, model: ModelKey, now: float) -> list[Expected]:  # noqa: ARG002
        return [Expected(max(1.0, at + START - now), self._target, self._pool.roles) for at in self._ordered]

    def _staying(self) -> list[Server]:
        gone = {*self._drained, *self._doomed}
        return [server for server in self._view.servers.values() if server.id not in gone and not server.is_leaving]

    def _seen(self, staying: Sequence[Server], now: float) -> Seen:
        busy = sum(server.is_computing for server in staying)
        unfinished = len(self._view.live)
        started = sum(any(job.attempt is not None for job in each.jobs.values()) for each in self._view.live.values())
        return Seen(now, len(staying), len(self._ordered), busy, unfinished - started, unfinished)


class Planned:
    """Has servers ready when the plan says so."""

    def __init__(self, plan: Sequence[int]):
        self._plan = plan

    def wanted(self, seen: Seen) -> int:
        first, last = (int(at / foresight.STEP) for at in (seen.now, seen.now + START + INTERVAL))
        return max(self._plan[min(step, len(self._plan) - 1)] for step in range(first, last + 1))


def scaling(contender: str, setting: str) -> Scaling:
    """``setting``: which of the grid's, if it has one."""
    if contender == "prediction":
        return predicted
    return lambda scenario, view: Ruled(scenario, view, GRID[contender][setting]())


def planned(plan: Sequence[int]) -> Scaling:
    return lambda scenario, view: Ruled(scenario, view, Planned(plan))

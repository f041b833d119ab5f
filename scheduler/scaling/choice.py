"""One decision about the pools of one model: start more, give one up, or neither; and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, log

from scheduler.scaling.fleet import Fleet
from scheduler.scaling.outlook import Outlook
from scheduler.scaling.pools import ScalingSettings
from scheduler.scaling.records import ModelState, PoolState
from wire.types import ServerId

CALM = 0.8
"""Share of the allowed wait that must be kept without the server that is given up: less, and it would soon be back."""
LATE = 2.0
"""Times what is looked ahead, after a jump, for which work is taken to wait since servers came late."""
CLEARED, CLEARED_LATE = 0.5, 1.5
"""Times the allowed wait, after a start, in which what has waited for it may be worked off; the latter after a jump:
servers that do it sooner would be idle then."""
SUPERSEDED = 2.0
"""Times as much must have been seen of a new level, for what was thought of it to count no longer."""
WHOLE = 1.0
"""Seconds that may be waited at least: below, nothing could be judged."""


@dataclass(frozen=True, slots=True)
class Situation:
    states: Sequence[PoolState]
    """Pools of the model."""
    doomed: Mapping[ServerId, float]
    model: ModelState | None
    """None: nobody has asked for it yet."""
    fleet: Fleet
    asked_at: float
    """When the latest request came, or this began."""
    is_introduced: bool
    """Some server has said what the model is."""
    backlog: float
    live: int
    """Requests under way."""

    def count(self, state: PoolState) -> int:
        return len(state.staying(self.doomed)) + len(state.ordered)


class Choice:
    def __init__(self, situation: Situation, settings: ScalingSettings, now: float):
        self._now = now
        self._settings = settings
        self._at = situation
        self._extra: Counter[str] = Counter()
        self._starts = {state.pool.name: state.starts.safe() for state in situation.states}
        self._lead = max(self._starts.values())
        self._verdict = ""

    @property
    def is_idle(self) -> bool:
        return not self._at.live and self._now - self._at.asked_at > self._settings.idle_seconds

    def made(self) -> Mapping[str, int]:
        """Servers more, or fewer, of each pool."""
        self._keep_limits()
        if not self._at.is_introduced:
            self._verdict = "no server has introduced the model yet"
        elif self.is_idle:
            self._rest()
        else:
            outlook = self._outlook()
            self._grow(outlook)
            self._shrink(outlook)
        return self._extra

    def why(self, state: PoolState) -> str:
        change = self._extra[state.pool.name]
        told = f"{change:+d}: " if change else ""
        return f"{told}{self._verdict}"

    # --- the rules ----------------------------------------------------------------------------------------------------

    def _keep_limits(self) -> None:
        for state in self._at.states:
            count, pool = self._at.count(state), state.pool
            self._extra[pool.name] = min(pool.max, max(pool.min, count)) - count
        if not self._at.is_introduced and not any(self._count(state) for state in self._at.states):
            first = min(self._at.states, key=lambda state: (state.pool.price, state.pool.name))
            self._extra[first.pool.name] += 1

    def _rest(self) -> None:
        """Nobody asks: each pool goes back to its least."""
        self._verdict = f"nothing was asked for in {self._settings.idle_seconds:g} s"
        for state in self._at.states:
            self._extra[state.pool.name] += state.pool.min - self._count(state)

    def _grow(self, outlook: Outlook) -> None:
        since = self._lead + (CLEARED_LATE if self._is_after_jump else CLEARED) * outlook.allowed
        until = since + self._settings.dwell_seconds
        self._verdict = self._told(outlook)
        while not self._carried(outlook, since, until, self._settings.grow_errors):
            able = [state for state in self._at.states if self._count(state) < state.pool.max]
            if not able:
                self._verdict += "; more would be needed than the pools may have"
                return
            self._extra[max(able, key=self._gain).pool.name] += 1

    def _gain(self, state: PoolState) -> tuple[float, float, str]:
        """Capacity for the price of one more; where one alone gives none, as roles lack a holder, the cheapest."""
        name, fleet = state.pool.name, self._at.fleet
        more = fleet.total({**self._extra, name: self._extra[name] + 1}) - fleet.total(self._extra)
        return more / state.pool.price, -state.pool.price, name

    def _shrink(self, outlook: Outlook) -> None:
        """Down to the most that was needed since a server that starts now would have been asked for.

        A server that is kept in vain for as long as a start takes has cost what starting it again would. After a jump
        that is another matter: what was needed before it tells nothing, and work that waits since then, as servers came
        late, will not wait again once it is done. In a load that rises and falls it may. Nor does it count what was
        thought to be needed when less than half as much had been seen since the jump.
        """
        calm = replace(outlook, allowed=CALM * outlook.allowed)
        until = self._lead + self._settings.dwell_seconds
        grown = Counter(self._extra)
        self._give_up(calm, until)
        needed = Counter(self._extra)
        if self._is_after_jump:
            self._give_up(replace(calm, backlog=0.0), until)
        for state in self._at.states:
            name = state.pool.name
            dwell = min(max(self._settings.dwell_seconds, self._starts[name]), self._since_jump / SUPERSEDED)
            count = self._at.count(state)
            present = count + grown[name]
            enough = state.enough(self._count(state), present, dwell, self._now)
            self._extra[name] = min(max(enough, count + needed[name]), present) - count
        if self._extra != grown:
            self._verdict += f"; the peak expected within {until:.0f} s fits with fewer"

    def _give_up(self, outlook: Outlook, until: float) -> None:
        """As many as the others do without, the dearest first."""
        for state in sorted(self._at.states, key=lambda state: (-state.pool.price, state.pool.name)):
            name = state.pool.name
            while self._count(state) > state.pool.min:
                self._extra[name] -= 1
                if not self._carried(outlook, 0.0, until, self._settings.shrink_errors):
                    self._extra[name] += 1
                    break

    # --- what they go by ----------------------------------------------------------------------------------------------

    def _count(self, state: PoolState) -> int:
        return self._at.count(state) + self._extra[state.pool.name]

    def _carried(self, outlook: Outlook, since: float, until: float, errors: float) -> bool:
        fleet = self._at.fleet
        if not fleet.total(self._extra):
            return False  # some role would have no holder
        return outlook.carried(fleet.capacity(self._extra, self._starts), since, until, errors)

    @property
    def _since_jump(self) -> float:
        """Seconds."""
        return self._now - (self._at.model.forecast.jumped_at if self._at.model is not None else -inf)

    @property
    def _is_after_jump(self) -> bool:
        """Work that waits is taken to do so since servers came late."""
        return self._since_jump < LATE * (self._lead + self._settings.dwell_seconds)

    def _outlook(self) -> Outlook:
        model, settings = self._at.model, self._settings
        if model is None:
            return Outlook(self._at.backlog, lambda _ahead, _errors: 0.0, 0.0, settings.most_wait_seconds)
        allowed = max(WHOLE, min(settings.wait_share * model.slack(), settings.most_wait_seconds))
        # A queue in heavy traffic: P(wait > t) = exp(-2 · spare capacity · t / burst).
        reserve = log(1 / settings.late_chance) * model.forecast.burst / (2 * max(allowed, model.slack()))
        return Outlook(self._at.backlog, model.forecast.rate, reserve, allowed)

    def _told(self, outlook: Outlook) -> str:
        now, later = outlook.rate(0.0, 0.0), outlook.rate(self._lead, 0.0)
        unsure = outlook.rate(self._lead, 1.0) - later
        return (
            f"device-seconds asked for per second: {now:.2f}, in {self._lead:.0f} s {later:.2f} ± {unsure:.2f}; "
            f"{outlook.backlog:.0f} s of work under way; the servers ordered so far carry "
            f"{self._at.fleet.total({}):.2f} per second"
        )

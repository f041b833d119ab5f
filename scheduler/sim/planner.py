"""How many of which GPU for this load at this SLO.

The fluid bound says how few servers can possibly do; the simulation says whether they keep the SLO.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from scheduler.roles.problem import Infeasible
from scheduler.sim.bound import fluid_rate, with_best_roles
from scheduler.sim.engine import simulate
from scheduler.sim.metrics import End, quantile
from scheduler.sim.policies import named
from scheduler.sim.setup import Scenario, ServerSetup
from scheduler.sim.workload import Phase, Workload

MOST_UTILISED = 0.95
"""Of the fluid bound: above it, no queue stays short."""


@dataclass(frozen=True, slots=True)
class Slo:
    latency: float
    """Seconds."""
    quantile: float = 0.99
    """Share of requests within it; rejected and failed ones count as outside."""

    def __post_init__(self) -> None:
        if self.latency <= 0 or not 0 < self.quantile < 1:
            raise ValueError("an SLO is a latency above 0 s for a share of requests between 0 and 1")


@dataclass(frozen=True, slots=True)
class Offer:
    """A device class that can be had."""

    setup: ServerSetup
    price: float = 1.0
    """Per server, in any unit."""
    most: int = 32


@dataclass(frozen=True, slots=True)
class Answer:
    counts: tuple[int, ...]
    """Servers of each offer."""
    price: float
    fluid_rate: float
    """Requests per second that they could serve at most."""
    latency: float
    """Simulated, at the SLO's quantile, the worst of the seeds."""
    tried: int
    """Fleets simulated."""


def answer(
    offers: Sequence[Offer],
    phase: Phase,
    slo: Slo,
    policies: str = "elastic",
    seeds: Sequence[int] = (1, 2),
    tell: Callable[[str], None] = lambda _line: None,
) -> Answer | None:
    """The cheapest fleet that keeps the SLO, or None if no allowed one does. ``phase`` has a rate."""
    for tried, (price, counts, rate) in enumerate(_candidates(offers, phase), start=1):
        latency = max(_latency(_fleet(offers, counts), phase, slo, policies, seed) for seed in seeds)
        tell(f"{describe(offers, counts)}: {100 * slo.quantile:g} % within {latency:.2f} s")
        if latency <= slo.latency:
            return Answer(counts, price, rate, latency, tried)
    return None


def _candidates(offers: Sequence[Offer], phase: Phase) -> Iterator[tuple[float, tuple[int, ...], float]]:
    """Fleets that can serve the load at all, cheapest first."""
    fleets = [counts for counts in product(*(range(offer.most + 1) for offer in offers)) if any(counts)]
    priced = sorted((sum(n * o.price for n, o in zip(counts, offers, strict=True)), counts) for counts in fleets)
    for price, counts in priced:
        try:
            rate = fluid_rate(_fleet(offers, counts), phase)
        except Infeasible:
            continue  # not every role finds a holder among so few
        if rate * MOST_UTILISED >= phase.rate:
            yield price, counts, rate


def _fleet(offers: Sequence[Offer], counts: tuple[int, ...]) -> list[ServerSetup]:
    return [
        replace(offer.setup, name=f"{offer.setup.name}{i}", roles=frozenset())
        for offer, count in zip(offers, counts, strict=True)
        for i in range(1, count + 1)
    ]


def _latency(servers: list[ServerSetup], phase: Phase, slo: Slo, policies: str, seed: int) -> float:
    scenario = Scenario("plan", with_best_roles(servers, phase), Workload((phase,)))
    result = simulate(scenario, named(policies, scenario), seed)
    return quantile((r.latency if r.end is End.FINISHED else float("inf") for r in result.requests), slo.quantile)


def describe(offers: Sequence[Offer], counts: tuple[int, ...]) -> str:
    parts = [f"{n} × {o.setup.profile.device_class}" for n, o in zip(counts, offers, strict=True) if n]
    return " + ".join(parts)

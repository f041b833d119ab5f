"""How many of which GPU for this load at this SLO.

The fluid bound says how few servers can possibly do; the simulation says whether they keep the SLO.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from scheduler.cost.features import row
from scheduler.cost.profile import GIGABYTE as GB
from scheduler.cost.profile import Profile
from scheduler.cost.work import Work
from scheduler.roles.problem import Infeasible
from scheduler.sim.bound import fluid_rate, with_best_roles
from scheduler.sim.engine import simulate
from scheduler.sim.metrics import End, mean, quantile
from scheduler.sim.policies import named
from scheduler.sim.setup import Scenario, ServerSetup
from scheduler.sim.workload import Phase, Workload
from wire.types import REQUIRED, Role

MOST_UTILISED = 0.95
"""Of the fluid bound: above it, no queue stays short."""
LEAST_SECONDS = 600.0
LEAST_REQUESTS = 500
"""Of a simulation with one seed."""
SURE = range(1, 9)
"""Seeds by whose mean latency is told: that of two may be off by a quarter where servers are few."""


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
class Forecast:
    """Simulated, of all seeds."""

    mean: float
    """Seconds, of requests that got their pictures; infinite where none did."""
    latency: float
    """At the SLO's quantile, of the worst seed."""


@dataclass(frozen=True, slots=True)
class Answer:
    counts: tuple[int, ...]
    """Servers of each offer."""
    price: float
    fluid_rate: float
    """Requests per second that they could serve at most."""
    forecast: Forecast
    servers: tuple[ServerSetup, ...]
    """With the roles that suit this load best."""
    tried: int
    """Fleets simulated."""

    @property
    def latency(self) -> float:
        return self.forecast.latency


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
        servers = with_best_roles(_fleet(offers, counts), phase)
        found = forecast(servers, phase, slo, policies, seeds)
        tell(f"{describe(offers, counts)}: {100 * slo.quantile:g} % within {found.latency:.2f} s")
        if found.latency <= slo.latency:
            found = replace(found, mean=forecast(servers, phase, slo, policies, SURE).mean)
            return Answer(counts, price, rate, found, servers, tried)
    return None


def forecast(
    servers: Sequence[ServerSetup], phase: Phase, slo: Slo, policies: str = "elastic", seeds: Sequence[int] = (1, 2)
) -> Forecast:
    """What requests of the phase see on these servers, which have their roles."""
    latencies: list[float] = []
    worst = 0.0
    for seed in seeds:
        scenario = Scenario("plan", tuple(servers), Workload((phase,)))
        result = simulate(scenario, named(policies, scenario), seed)
        latencies += result.latencies()
        each = (r.latency if r.end is End.FINISHED else float("inf") for r in result.requests)
        worst = max(worst, quantile(each, slo.quantile))
    return Forecast(mean(latencies) if latencies else float("inf"), worst)


def long_enough(rate: float) -> float:
    """Seconds to simulate: the mean of fewer requests says little."""
    return max(LEAST_SECONDS, LEAST_REQUESTS / rate)


def lighter(profile: Profile, weights: Mapping[Role, int]) -> Profile:
    """The same model whose roles' weights take so many bytes, as ``python -m stage_server memory`` tells."""
    roles = {
        role: replace(part, weights_bytes=weights.get(role, part.weights_bytes)) for role, part in profile.roles.items()
    }
    return replace(profile, roles=roles)


def waiting_for_weights(profile: Profile, copy_seconds: Mapping[Role, float], works: Iterable[Work]) -> Profile:
    """The same model of which some weights come for each call: jobs such as ``works`` do not compute faster than those.

    They come while others compute, so that of both times the longer one counts.
    """
    roles = dict(profile.roles)
    for work in works:
        if work.role not in copy_seconds or work.role not in roles:
            continue
        part = roles[work.role]
        features = row(work, profile.model)
        computing = sum(each * feature for each, feature in zip(part.coefficients, features, strict=True))
        fixed, *others = part.coefficients
        waiting = max(0.0, copy_seconds[work.role] - computing)
        roles[work.role] = replace(part, coefficients=(fixed + waiting, *others))
    return replace(profile, roles=roles)


def too_large(offers: Sequence[Offer], roles: Sequence[Role] = REQUIRED) -> list[str]:
    """What nobody has room for, in words."""
    found = []
    for role in roles:
        able = [offer for offer in offers if role in offer.setup.profile.roles]
        if able and not any(offer.setup.fits(frozenset({role})) for offer in able):
            most = max(able, key=lambda offer: offer.setup.memory).setup
            part = most.profile.roles[role]
            found.append(
                f"the {role} of {most.model} takes {part.weights_bytes / GB:.1f} GB, and a job of it "
                f"{part.activation_bytes / GB:.1f} GB; the largest device offered, {most.profile.device_class}, has "
                f"{most.memory / GB:g} GB"
            )
    return found


def placement(servers: Sequence[ServerSetup]) -> list[str]:
    """Which roles where, and the memory that they take: a line for each sort of server."""
    sorts = Counter((server.profile.device_class, server.roles) for server in servers)
    lines = []
    for (device, roles), count in sorts.items():
        one = next(s for s in servers if (s.profile.device_class, s.roles) == (device, roles))
        parts = [one.profile.roles[role] for role in roles]
        taken = sum(part.weights_bytes for part in parts) + max((part.activation_bytes for part in parts), default=0)
        held = " + ".join(role for role in Role if role in roles) or "nothing"
        lines.append(f"{count} × {device}: {held}, {taken / GB:.1f} of {one.memory / GB:g} GB")
    return lines


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


def describe(offers: Sequence[Offer], counts: tuple[int, ...]) -> str:
    parts = [f"{n} × {o.setup.profile.device_class}" for n, o in zip(counts, offers, strict=True) if n]
    return " + ".join(parts)

"""Who cannot fetch from whom, and whose fault that is. A record of pairs and a judgement over it; it decides nothing.

Only failures are kept, each of one fetcher with one holder. The gateway is a fetcher as well: it reads pictures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from scheduler.state import Server
from wire.types import READERS, REQUIRED, STAGES, Role, ServerId

GATEWAY = ServerId("")
"""As a fetcher."""

Pair = tuple[ServerId, ServerId]
"""Fetcher, holder."""

READING = frozenset(role for role in Role if STAGES[role].reads)
"""Roles whose jobs read what other servers hold."""
PICTURED = frozenset(role for role in Role if STAGES[role].makes_pictures)
"""Roles from which the gateway reads."""


@dataclass(slots=True)
class Failure:
    detail: str
    """The address, and what happened there."""
    retry_at: float
    delay: float
    is_settled: bool = False
    """Everybody else who was asked about its two ends has answered."""


@dataclass(slots=True)
class Verdict:
    """Each with the other ends of its failing pairs."""

    holders: dict[ServerId, set[ServerId]] = field(default_factory=dict)
    """Not reached by those who fetch."""
    fetchers: dict[ServerId, set[ServerId]] = field(default_factory=dict)
    """Unable to fetch from holders that others reach."""


@dataclass(slots=True)
class Reach:
    failing: dict[Pair, Failure] = field(default_factory=dict)

    def unable(self, holders: Iterable[ServerId]) -> set[ServerId]:
        """Servers known to fail with one of ``holders``."""
        if not self.failing:
            return set()
        held = set(holders)
        return {fetcher for fetcher, holder in self.failing if holder in held}


def readers(holder: Server, servers: Mapping[ServerId, Server]) -> Iterator[Server]:
    """Servers that may have to fetch from ``holder``."""
    return (other for other in servers.values() if _reads(other, holder))


def sources(fetcher: Server, servers: Mapping[ServerId, Server]) -> Iterator[Server]:
    """Servers from which ``fetcher`` may have to fetch."""
    return (other for other in servers.values() if _reads(fetcher, other))


def judge(pairs: Iterable[Pair], servers: Mapping[ServerId, Server]) -> Verdict:
    """Who is at fault, so that every failing pair that can be explained is explained by as few as possible.

    Whoever has most failing pairs comes first: a dead address fails for everybody, and whoever is cut off fails with
    everybody. The gateway breaks ties: it tries every holder. A pair that is alone, with neither end in other trouble,
    says nothing about either, unless one end has nobody else to turn to.
    """
    verdict, left = Verdict(), set(pairs)
    while (worst := _worst(left)) is not None:
        name, is_holder = worst
        theirs = {pair for pair in left if pair[is_holder] == name}
        if is_holder and _is_needed_for_itself(name, {fetcher for fetcher, _ in theirs}, verdict, servers):
            for fetcher, holder in theirs:
                verdict.fetchers.setdefault(fetcher, set()).add(holder)
        else:
            side = verdict.holders if is_holder else verdict.fetchers
            side[name] = {pair[not is_holder] for pair in theirs}
        left -= theirs
    for fetcher, holder in sorted(left):
        _judge_alone(fetcher, holder, verdict, servers)
    return verdict


def _worst(pairs: set[Pair]) -> tuple[ServerId, bool] | None:
    """Who has two failing pairs or more, the most of all; as a holder or as a fetcher."""
    others: defaultdict[tuple[ServerId, bool], set[ServerId]] = defaultdict(set)
    for fetcher, holder in pairs:
        others[fetcher, False].add(holder)
        others[holder, True].add(fetcher)
    ranked = [
        (len(ends), 2 * (GATEWAY in ends) if is_holder else 1, name, is_holder)
        for (name, is_holder), ends in others.items()
        if len(ends) > 1
    ]
    if not ranked:
        return None
    _, _, name, is_holder = max(ranked)
    return name, is_holder


def _is_needed_for_itself(
    name: ServerId, fetchers: set[ServerId], verdict: Verdict, servers: Mapping[ServerId, Server]
) -> bool:
    """Whether it makes whole pictures alone, which the gateway gets, and nobody else can: rather without the others."""
    holder = servers[name]
    if GATEWAY in fetchers or not holder.roles.issuperset(REQUIRED):
        return False
    rest = [other for other in servers.values() if other is not holder and other.id not in verdict.holders]
    held = {role for other in rest if other.spec.model == holder.spec.model for role in other.roles}
    return not held.issuperset(REQUIRED)


def _judge_alone(fetcher: ServerId, holder: ServerId, verdict: Verdict, servers: Mapping[ServerId, Server]) -> None:
    fetching = [other.id for other in readers(servers[holder], servers) if other.id not in verdict.fetchers]
    if fetcher == GATEWAY:
        if not fetching:
            verdict.holders[holder] = {fetcher}
        return
    held = [other.id for other in sources(servers[fetcher], servers) if other.id not in verdict.holders]
    if held == [holder]:
        verdict.fetchers.setdefault(fetcher, set()).add(holder)
    elif fetching == [fetcher]:
        verdict.holders.setdefault(holder, set()).add(fetcher)


def _reads(reader: Server, holder: Server) -> bool:
    if reader is holder or reader.spec.model != holder.spec.model:
        return False
    return any(later in reader.roles for role in holder.roles for later in READERS[role])

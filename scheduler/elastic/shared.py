"""What it means to a prediction that servers of several models share devices: the others' work there, and the time
until a role that nobody holds has come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice

from scheduler.elastic.book import Book
from scheduler.elastic.lane import Rank
from scheduler.state import Server
from scheduler.view import Station, View
from wire.types import ModelKey, Role

SAMPLE = 64
"""Servers that are looked at."""
DECIDING_SECONDS = 1.0
"""Until a plan has been made and sent."""


def work_of_others(model: ModelKey, roles: Iterable[Role], rank: Rank, view: View, book: Book) -> float:
    """Reference seconds of other models that go before a job of this rank on the devices that serve these roles."""
    if not view.devices:
        return 0.0
    mine: dict[str, Server] = {}
    for role in roles:
        for server in islice(view.serving(model, role).values(), SAMPLE):
            if server.sharers:
                mine[server.spec.device] = server
    shared: Counter[Station] = Counter(
        (other.spec.model, role)
        for server in mine.values()
        for other in server.sharers
        if other is not server
        for role in other.serving
    )
    return sum(
        count / len(view.serving(*station)) * sum(stock.ahead(rank) for stock in book.stocks(*station).values())
        for station, count in shared.items()
    )


def seconds_until_held(model: ModelKey, roles: Iterable[Role], view: View) -> float:
    """Until roles that nobody holds have come to the server that can have them soonest; 0 where all are held."""
    unheld = [role for role in roles if not view.serving(model, role)]
    if not unheld:
        return 0.0
    able = (
        _loading_seconds(server, unheld)
        for server in view.servers.values()
        if server.spec.model == model and not server.is_leaving and not server.pinned
    )
    return min((seconds for seconds in able if seconds is not None), default=0.0)


def _loading_seconds(server: Server, roles: Iterable[Role]) -> float | None:
    """Of all of these, as announced; None where it cannot have them."""
    total = DECIDING_SECONDS
    for role in roles:
        cost = server.spec.capable.get(role)
        if cost is None:
            return None
        total += cost.warm_seconds if role in server.warm and cost.warm_seconds else cost.load_seconds
    return total

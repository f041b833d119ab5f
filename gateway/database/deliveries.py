"""Webhooks that have yet to be delivered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from urllib.parse import urlsplit

import sqlalchemy as sa

from gateway.database.database import Database
from gateway.database.tables import metadata
from gateway.database.unbroken import whole

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("subject", sa.String(64), nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("next_at", sa.Double, nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Index("ix_deliveries_next_at", "next_at"),
    sa.Index("ix_deliveries_host_next_at", "host", "next_at"),
    sa.Index("ix_deliveries_subject", "subject"),
)


@dataclass(frozen=True, slots=True)
class Delivery:
    id: str
    """The same in every try, so that a receiver knows what it has had."""
    subject: str
    """The job or batch that it is about."""
    url: str
    payload: str
    """JSON."""
    next_at: float
    """Unix time of the next try."""
    tries: int = 0
    """That have begun."""

    @property
    def host(self) -> str:
        """Whom it goes to."""
        return (urlsplit(self.url).hostname or "")[:255]

    def row(self) -> dict[str, object]:
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"host": self.host}


@dataclass(frozen=True, slots=True)
class Places:
    """For deliveries that are under way at a time."""

    free: int
    per_host: int
    taken: Mapping[str, int]
    """Host → how many are under way."""


class Deliveries:
    """Every method raises ``DatabaseError``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @whole
    async def take(self, now: float, hold_seconds: float, places: Places) -> Sequence[Delivery]:
        """Those whose time has come, as many as there are ``places`` for; of each host the oldest first. For
        ``hold_seconds`` nobody else gets them, and then somebody does, unless they are settled by then: a gateway that
        dies in between loses none."""
        chosen = await self._chosen(now, places)
        if not chosen:  # mostly there are none, which is no reason to lock anything
            return []
        due = sa.select(deliveries).where(deliveries.c.id.in_(chosen), deliveries.c.next_at <= now)
        taken: list[Delivery] = []
        async with self._database.begin() as connection:
            for row in await connection.execute(due.with_for_update(skip_locked=True)):
                found = Delivery(row.id, row.subject, row.url, row.payload, row.next_at, row.tries + 1)
                held = sa.update(deliveries).where(deliveries.c.id == found.id)
                await connection.execute(held.values(tries=found.tries, next_at=now + hold_seconds))
                taken.append(found)
        return taken

    async def _chosen(self, now: float, places: Places) -> Sequence[str]:
        """Ids. However many wait for one host, another's turn is as soon: the first of each, then the second, …"""
        full = [host for host, count in places.taken.items() if count >= places.per_host]
        turn = sa.func.row_number().over(partition_by=deliveries.c.host, order_by=deliveries.c.next_at).label("turn")
        due = sa.select(deliveries.c.id, deliveries.c.host, deliveries.c.next_at, turn)
        due = due.where(deliveries.c.next_at <= now, deliveries.c.host.not_in(full))
        ranked = due.subquery()
        wanted = sa.select(ranked.c.id, ranked.c.host, ranked.c.turn).where(ranked.c.turn <= places.per_host)
        wanted = wanted.order_by(ranked.c.turn, ranked.c.next_at).limit(
            places.free + places.per_host * len(places.taken)
        )
        async with self._database.session() as connection:
            rows = await connection.execute(wanted)
            fitting = [row.id for row in rows if row.turn + places.taken.get(row.host, 0) <= places.per_host]
        return fitting[: places.free]

    @whole
    async def settle(self, delivery: Delivery, next_at: float | None) -> None:
        """Delivered, or given up, or, with ``next_at``, to be tried again."""
        here = (deliveries.c.id == delivery.id, deliveries.c.tries == delivery.tries)
        async with self._database.begin() as connection:
            if next_at is None:
                await connection.execute(sa.delete(deliveries).where(*here))
            else:
                await connection.execute(sa.update(deliveries).where(*here).values(next_at=next_at))

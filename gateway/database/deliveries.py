"""Webhooks that have yet to be delivered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

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
    sa.Index("ix_deliveries_next_at", "next_at"),
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

    def row(self) -> dict[str, object]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


class Deliveries:
    """Every method raises ``DatabaseError``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @whole
    async def take(self, now: float, hold_seconds: float, limit: int) -> Sequence[Delivery]:
        """Those whose time has come. For ``hold_seconds`` nobody else gets them, and then somebody does, unless they
        are settled by then: a gateway that dies in between loses none."""
        due = sa.select(deliveries).where(deliveries.c.next_at <= now).order_by(deliveries.c.next_at).limit(limit)
        taken: list[Delivery] = []
        async with self._database.session() as connection:  # mostly there are none, which is no reason to lock anything
            if (await connection.execute(due)).first() is None:
                return taken
        async with self._database.begin() as connection:
            for row in await connection.execute(due.with_for_update(skip_locked=True)):
                found = Delivery(row.id, row.subject, row.url, row.payload, row.next_at, row.tries + 1)
                held = sa.update(deliveries).where(deliveries.c.id == found.id)
                await connection.execute(held.values(tries=found.tries, next_at=now + hold_seconds))
                taken.append(found)
        return taken

    @whole
    async def settle(self, delivery: Delivery, next_at: float | None) -> None:
        """Delivered, or given up, or, with ``next_at``, to be tried again."""
        here = (deliveries.c.id == delivery.id, deliveries.c.tries == delivery.tries)
        async with self._database.begin() as connection:
            if next_at is None:
                await connection.execute(sa.delete(deliveries).where(*here))
            else:
                await connection.execute(sa.update(deliveries).where(*here).values(next_at=next_at))

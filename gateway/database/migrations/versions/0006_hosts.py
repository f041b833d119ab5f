"""Deliveries are looked up by the host that they go to."""

from __future__ import annotations

from urllib.parse import urlsplit

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("host", sa.String(255), nullable=False, server_default=""))
    deliveries = sa.table("deliveries", sa.column("url", sa.Text), sa.column("host", sa.String))
    connection = op.get_bind()
    for (url,) in connection.execute(sa.select(deliveries.c.url).distinct()).all():
        known = sa.update(deliveries).where(deliveries.c.url == url)
        connection.execute(known.values(host=(urlsplit(url).hostname or "")[:255]))
    op.create_index("ix_deliveries_host_next_at", "deliveries", ["host", "next_at"])

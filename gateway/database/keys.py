"""API keys: hashed at rest, never deleted, so that what was done with one can be told for ever."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Double, Integer, LargeBinary, String, Table

from gateway.database.tables import metadata

keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(200), nullable=False, index=True),
    Column("name", String(200), nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("scopes", JSON, nullable=False),
    Column("models", JSON, nullable=False),
    Column("requests_per_minute", Integer),
    Column("images_per_minute", Integer),
    Column("concurrent_requests", Integer),
    Column("device_seconds_per_month", Double),
    Column("created", Double, nullable=False),
    Column("expires", Double),
    Column("last_used", Double),
    Column("revoked", Double),
)

key_changes = Table(
    "key_changes",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("count", BigInteger, nullable=False),
)
"""One row, counted up with every change that callers have to feel: gateways read the keys again when it has moved."""

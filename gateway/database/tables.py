"""What all tables share."""

from __future__ import annotations

from sqlalchemy import Dialect, MetaData, Table
from sqlalchemy.dialects import postgresql, sqlite

metadata = MetaData(
    naming_convention={  # without names, SQLite's constraints could never be changed
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def insert(dialect: Dialect, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An insert that may be given ``on_conflict_do_nothing`` or ``on_conflict_do_update``; both kinds of database take
    the same arguments."""
    if dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)

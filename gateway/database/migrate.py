"""Brings the database to the tables that this code knows, or leaves it as it is and says why."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.database.engines import TRANSACTION_SECONDS
from gateway.database.errors import DatabaseRefused, trouble_of

MIGRATIONS = Path(__file__).with_name("migrations")

TARGET = "head"
"""The revision to reach."""

LOCK = 0x4453_4647
"""The advisory lock (PostgreSQL) of whoever migrates; "DSFG"."""

WAIT_SECONDS = 600
"""For another gateway that migrates."""

logging.getLogger("alembic").setLevel(logging.WARNING)  # from its import on it tells what it assumes
log = logging.getLogger(__name__)


async def migrate(engine: AsyncEngine, where: str) -> None:
    """In one transaction, behind a lock: of several gateways that start at once, one migrates and the others wait.

    Raises ``DatabaseRefused``, and whatever ``trouble_of`` can tell. In either case the tables are as they were.
    """
    async with asyncio.timeout(TRANSACTION_SECONDS), engine.connect() as connection:
        current = await connection.run_sync(_version)
    if current == newest():  # the usual start: nobody has to wait for a writer's lock, nor for Alembic to be loaded
        return
    async with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            await connection.execute(text(f"SET LOCAL lock_timeout = '{WAIT_SECONDS}s'"))
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        await connection.run_sync(_upgrade, where)


def newest() -> str:
    """The latest revision that this code knows, by the names of the files: ``0001_keys.py``, ``0002_…``."""
    return max(path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(connection: Connection, where: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    known = ScriptDirectory.from_config(config)
    current = _version(connection)
    if current is not None and current not in {script.revision for script in known.walk_revisions()}:
        raise DatabaseRefused(
            f"{where} is of a newer version (revision {current}) than this gateway, "
            f"which knows revisions up to {known.get_current_head()}: install the newer gateway again, "
            "or restore the copy of the database that was made before it"
        )
    config.attributes["connection"] = connection
    try:
        log.info("%s: from revision %s to %s", where, current or "none", known.get_current_head())
        command.upgrade(config, TARGET)
    except Exception as error:  # whatever a revision's own code raises: the transaction is rolled back
        if trouble_of(error) is not None:
            raise
        reason = str(error).partition("\n")[0]
        raise DatabaseRefused(
            f"{where} could not be migrated from revision {current or 'none'} to {known.get_current_head()}, "
            f"and is as it was: {reason}"
        ) from error

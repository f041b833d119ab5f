"""Run by Alembic for every command; ``gateway.database.migrate`` hands it the connection, in a transaction."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    # True of SQLite as well, as ``engines`` begins its transactions: what one revision of several did goes with it.
    transactional_ddl=True,
)
context.run_migrations()

"""Answers: kept for requests that are sent again with the same Idempotency-Key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "answers",
        sa.Column("id", sa.LargeBinary(32), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(32), nullable=False),
        sa.Column("lease_ends", sa.Double(), nullable=False),
        sa.Column("waited_for", sa.Double(), nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("headers", sa.JSON()),
        sa.Column("error_code", sa.String(64)),
        sa.Column("object", sa.String(100)),
        sa.Column("nbytes", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.Double()),
        sa.Column("body", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("id", name="pk_answers"),
    )
    op.create_index("ix_answers_expires_nbytes", "answers", ["expires", "nbytes"])

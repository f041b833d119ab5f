"""Jobs, the lines of batches among them, and webhooks that have yet to be delivered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("request", sa.LargeBinary(), nullable=False),
        sa.Column("pictures", sa.Integer(), nullable=False),
        sa.Column("inputs", sa.Text(), nullable=False),
        sa.Column("outputs", sa.Text(), nullable=False),
        sa.Column("nbytes", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("in_progress_at", sa.Double()),
        sa.Column("ended_at", sa.Double()),
        sa.Column("deadline_at", sa.Double(), nullable=False),
        sa.Column("predicted_at", sa.Double()),
        sa.Column("expires_at", sa.Double()),
        sa.Column("token", sa.String(64)),
        sa.Column("answer", sa.LargeBinary()),
        sa.Column("error", sa.LargeBinary()),
        sa.Column("webhook_url", sa.Text()),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(64)),
        sa.Column("lease_until", sa.Double()),
        sa.Column("not_before", sa.Double(), nullable=False),
        sa.Column("batch_id", sa.String(64)),
        sa.Column("line", sa.Integer()),
        sa.Column("custom_id", sa.Text()),
        sa.Column("begins", sa.BigInteger()),
        sa.Column("length", sa.Integer()),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_tenant_created_at", "jobs", ["tenant", "created_at"])
    op.create_index("ix_jobs_batch_id_ended_at_line", "jobs", ["batch_id", "ended_at", "line"])
    op.create_index("ix_jobs_ended_at_deadline_at", "jobs", ["ended_at", "deadline_at"])
    op.create_index("ix_jobs_expires_at", "jobs", ["expires_at"])
    op.create_index("ix_jobs_owner", "jobs", ["owner"])
    op.create_index("ix_jobs_token", "jobs", ["token"])
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(64), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
    )
    op.create_index("ix_deliveries_next_at", "deliveries", ["next_at"])
    op.create_index("ix_deliveries_subject", "deliveries", ["subject"])

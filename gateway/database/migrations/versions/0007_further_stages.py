"""Seconds of the enhancer and of the upscaler, which were counted to the encoder's and the decoder's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    for name in ("enhancer_seconds", "upscaler_seconds"):
        # With a default: a gateway of the version before goes on writing rows without them.
        op.add_column("usage", sa.Column(name, sa.Double(), nullable=False, server_default="0"))

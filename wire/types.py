"""Names shared by every process: roles, ids, epochs.

Standard library only: the scheduler imports it everywhere, and of ``wire`` little else.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, NewType

ServerId = NewType("ServerId", str)
"""One life of one stage server: ``name/incarnation``. A restarted process has a new one."""

RequestId = NewType("RequestId", str)
JobId = NewType("JobId", str)

Handle = NewType("Handle", str)
"""128 random bits in hex: the key of one retained output in its holder's store."""

ModelKey = NewType("ModelKey", str)
"""Model name plus a digest of revisions, configs and dtype: stages mix only within one key."""


class Role(StrEnum):
    """A stage of the pipeline, in the order in which requests pass through them."""

    ENCODER = "encoder"
    DIT = "dit"
    DECODER = "decoder"


class Epoch(NamedTuple):
    """Names one job attempt or one role assignment, for ever.

    ``gateway`` is the incarnation of the gateway that issued it; counters of different gateways do not compare.
    """

    gateway: str
    counter: int


def server_name(server: ServerId) -> str:
    """The part that stays over restarts. Names may hold slashes, incarnations do not."""
    return server.rpartition("/")[0]

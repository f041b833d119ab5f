"""Names shared by every process: roles, ids, epochs.

Standard library only: the scheduler imports it everywhere, and of ``wire`` little else.
"""

from __future__ import annotations

from collections.abc import Mapping
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

    ENHANCER = "enhancer"
    ENCODER = "encoder"
    DIT = "dit"
    DECODER = "decoder"
    UPSCALER = "upscaler"


ROLES = tuple(Role)
"""To go through: an enumeration makes its members' order anew each time."""


class StageKind(NamedTuple):
    """How a role stands in the pipeline: whatever is no number, and differs between one stage and the next."""

    reads: tuple[Role, ...] = ()
    """Roles whose outputs its jobs read."""
    is_optional: bool = False
    """Only requests that ask for it pass through it. A model does without it unless some server brings it."""
    makes_pictures: bool = False
    """What it makes can go to the client."""
    is_told: bool = False
    """What it makes is a few words that the gateway is told, and puts into the parameters of jobs that need them: there
    is no output that anybody fetches, or that dies with its server."""


STAGES: Mapping[Role, StageKind] = {
    Role.ENHANCER: StageKind(is_optional=True, is_told=True),
    Role.ENCODER: StageKind(),
    Role.DIT: StageKind(reads=(Role.ENCODER,)),
    Role.DECODER: StageKind(reads=(Role.ENCODER, Role.DIT), makes_pictures=True),
    Role.UPSCALER: StageKind(reads=(Role.DECODER,), is_optional=True, makes_pictures=True),
}
"""In the order of ``Role``."""

REQUIRED = tuple(role for role in Role if not STAGES[role].is_optional)
"""Roles that every model needs held."""
OPTIONAL = tuple(role for role in Role if STAGES[role].is_optional)
"""Those that a model has where some server brings them."""

MAX_UPSCALE = 8
"""Factor by which a picture may become larger."""

MAX_PROMPT = 32_000
"""Characters of a prompt."""

READERS: Mapping[Role, tuple[Role, ...]] = {
    role: tuple(later for later in Role if role in STAGES[later].reads) for role in Role
}
"""Roles whose jobs may read what one of the role makes."""


class Epoch(NamedTuple):
    """Names one job attempt or one role assignment, for ever.

    ``gateway`` is the incarnation of the gateway that issued it; counters of different gateways do not compare.
    """

    gateway: str
    counter: int


def server_name(server: ServerId) -> str:
    """The part that stays over restarts. Names may hold slashes, incarnations do not."""
    return server.rpartition("/")[0]

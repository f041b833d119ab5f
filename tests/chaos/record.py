"""What was seen of requests: attempt by attempt, as the client saw them. No sockets here, and no judgement."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class End(StrEnum):
    """How an attempt was over, seen from the client."""

    ANSWERED = "answered"
    """With all that was asked for."""
    REFUSED = "refused"
    """With an error in the envelope."""
    BROKEN = "broken"
    """The connection ended before the answer did."""
    UNREACHED = "unreached"
    """No connection was made, so nothing was accepted."""
    HUNG = "hung"
    """Nothing came within the time that the client allows, which is above every deadline."""
    LEFT = "left"
    """The client hung up."""


@dataclass(frozen=True, slots=True)
class Attempt:
    gateway: int
    began: float
    ended: float
    end: End
    status: int = 0
    code: str = ""
    request_id: str = ""
    content: str = ""
    """Digest of the pictures that came."""
    once: str = ""
    """``x-idempotency``."""
    made_as: str = ""
    """The request that the answer was made for, if it was another's."""
    complaints: tuple[str, ...] = ()
    """What is wrong with the answer by itself: another's picture, one too many, an error out of its envelope."""


@dataclass(slots=True)
class Asked:
    """One request with all its attempts; the last of them is how it ended."""

    number: int
    kind: str
    key: str = ""
    attempts: list[Attempt] = field(default_factory=list)
    is_over: bool = False

    @property
    def last(self) -> Attempt:
        return self.attempts[-1]

    @property
    def waited(self) -> float:
        return self.last.ended - self.attempts[0].began if self.attempts else 0.0


Downtimes = dict[int, list[tuple[float, float]]]
"""Gateway → when it could lose requests: from its death, or the order to end, until it listens again."""

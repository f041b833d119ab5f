"""Servers that are on their way: predictions count on them from the moment at which they should be here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from scheduler.cost.work import Target
from wire.record import record
from wire.types import ModelKey, Role


@record(frozen=True, slots=True)
class Expected:
    """A server that was ordered, or that would be as soon as a request comes."""

    seconds: float
    """Until it is here."""
    target: Target
    roles: frozenset[Role]
    """That it may hold."""


class Source(Protocol):
    def expected(self, model: ModelKey, now: float) -> Sequence[Expected]: ...


class Coming:
    """Nobody is on their way until somebody who starts servers says otherwise."""

    def __init__(self) -> None:
        self._source: Source | None = None

    def follow(self, source: Source) -> None:
        self._source = source

    def expected(self, model: ModelKey, now: float) -> Sequence[Expected]:
        return self._source.expected(model, now) if self._source is not None else ()

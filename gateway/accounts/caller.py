"""Whom a request comes from, and what they may do."""

from __future__ import annotations

from enum import StrEnum

from wire.record import record


class Scope(StrEnum):
    GENERATE = "generate"
    EDIT = "edit"
    JOBS = "jobs"
    """Work that outlives its connection, and batches; what they do needs its own scope as well."""
    USAGE = "usage"
    """Reading what the tenant has used."""


EVERYTHING = frozenset(Scope)

WORK = frozenset({Scope.GENERATE, Scope.EDIT, Scope.JOBS})
"""Any one of them opens ``/v1/files``, which is of no use without."""


@record(frozen=True, slots=True)
class Limits:
    """Of one key; None is no limit of its own."""

    requests_per_minute: int | None = None
    images_per_minute: int | None = None
    concurrent_requests: int | None = None
    device_seconds_per_month: float | None = None


@record(frozen=True, slots=True)
class Caller:
    tenant: str
    """Files, jobs and usage belong to it; empty on an open server."""
    key: str = ""
    """Id of the key; ``static:TENANT`` for one of the environment, empty on an open server."""
    scopes: frozenset[Scope] = EVERYTHING
    models: frozenset[str] = frozenset()
    """Names, of models or aliases, that may be used; empty means all."""
    limits: Limits = Limits()

    def may_use(self, *names: str) -> bool:
        """Whether a model that goes by all these ``names`` may be used."""
        return not self.models or not self.models.isdisjoint(names)


ANYBODY = Caller("")
"""Every caller of an open server."""

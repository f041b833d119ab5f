"""Servers that fail one job after another. A broken device that fails fast would otherwise draw every job to itself.

A suspect server gets nothing while another holder of the role is there. After its probation it gets one job on trial:
success clears it, failure doubles the probation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.policy import Observer
from scheduler.spec import Timings
from scheduler.state import Attempt, Server
from scheduler.view import View
from wire.types import Role, ServerId

LONGEST_PROBATION = 600.0


@dataclass(slots=True)
class _Record:
    failures: int = 0
    """In a row."""
    until: float = 0.0
    """End of probation."""


class Suspects(Observer):
    def __init__(self, failures: int, probation_seconds: float):
        """``failures`` in a row make a server suspect."""
        self._failures = failures
        self._probation = probation_seconds
        self._records: dict[ServerId, _Record] = {}

    def is_suspect(self, server: ServerId) -> bool:
        record = self._records.get(server)
        return record is not None and record.failures >= self._failures

    def withholds(self, server: Server, role: Role, view: View, now: float) -> bool:
        """Whether the server is to get no job of this role now."""
        if not self.is_suspect(server.id):
            return False
        holders: Mapping[ServerId, Server] = view.serving(server.spec.model, role)
        if all(self.is_suspect(other) for other in holders):
            return False
        return now < self._records[server.id].until or bool(server.attempts)

    def done(self, attempt: Attempt, timings: Timings, now: float) -> None:  # noqa: ARG002
        self._records.pop(attempt.server.id, None)

    def failed(self, attempt: Attempt, *, is_fault: bool, now: float) -> None:
        if not is_fault:
            return
        record = self._records.setdefault(attempt.server.id, _Record())
        record.failures += 1
        doublings = record.failures - self._failures
        if doublings >= 0:
            record.until = now + min(self._probation * 2.0 ** min(doublings, 30), LONGEST_PROBATION)

    def keep_only(self, servers: Mapping[ServerId, Server]) -> None:
        """Forget servers that are gone."""
        for gone in self._records.keys() - servers.keys():
            del self._records[gone]

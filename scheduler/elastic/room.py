"""Admission where a model finds no room: others that are in use need the devices on which it could be loaded."""

from __future__ import annotations

from dataclasses import replace
from math import isinf

from scheduler.coming import Coming
from scheduler.elastic.roles import IDLE_SECONDS, ElasticRoles
from scheduler.policy import Admission, Verdict
from scheduler.state import Request
from scheduler.view import View
from wire.types import ModelKey


class AdmitWhereThereIsRoom:
    """Refuses what would wait until its deadline for other models to go out of use, and counts the wait otherwise.

    Where servers of the model are on their way it refuses nothing: they bring room.
    """

    def __init__(self, admission: Admission, roles: ElasticRoles, coming: Coming) -> None:
        self._admission = admission
        self._roles = roles
        self._coming = coming

    def decide(self, request: Request, view: View, now: float) -> Verdict:
        seconds, why = self._wait(request.spec.model, view, now)
        if isinf(seconds):
            return Verdict(False, IDLE_SECONDS, IDLE_SECONDS, why, "no_room")
        verdict = self._admission.decide(request, view, now)
        predicted = verdict.predicted_seconds + seconds
        excess = now + predicted - request.spec.deadline
        if seconds and verdict.admitted and excess > 0:
            return Verdict(False, predicted, excess, why, "no_room")
        return replace(verdict, predicted_seconds=predicted)

    def seconds_left(self, request: Request, view: View, now: float) -> float:
        seconds, _ = self._wait(request.spec.model, view, now)
        return self._admission.seconds_left(request, view, now) + min(seconds, IDLE_SECONDS)

    def _wait(self, model: ModelKey, view: View, now: float) -> tuple[float, str]:
        """For room, and why."""
        return (0.0, "") if self._coming.expected(model, now) else self._roles.room(model, view, now)

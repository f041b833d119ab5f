"""Admission where nothing was measured yet: if a guess turned requests away, it would never be put right."""

from __future__ import annotations

from dataclasses import replace

from scheduler.policy import Admission, Verdict
from scheduler.state import Request
from scheduler.view import View

MOST = 16
"""Requests under way that are admitted on a guess."""


class AdmitUnknown:
    """Overrules ``admission`` while the cost of a stage is a guess."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def decide(self, request: Request, view: View, now: float) -> Verdict:
        verdict = self._admission.decide(request, view, now)
        if verdict.admitted or view.requests >= MOST or now >= request.spec.deadline or not _is_guess(request, view):
            return verdict
        return replace(verdict, admitted=True, reason=f"nothing was measured yet, or else: {verdict.reason}")

    def seconds_left(self, request: Request, view: View, now: float) -> float:
        return self._admission.seconds_left(request, view, now)


def _is_guess(request: Request, view: View) -> bool:
    target = view.targets.get(request.spec.model)
    return target is None or any(view.cost.is_guess(target, job.spec.role) for job in request.jobs.values())

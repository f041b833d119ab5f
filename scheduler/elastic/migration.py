"""When a denoising job goes on elsewhere, at the step that it has reached: predicted gain against what it costs."""

from __future__ import annotations

from itertools import islice

from scheduler.elastic.settings import ElasticSettings
from scheduler.elastic.suspects import Suspects
from scheduler.state import Attempt, Server
from scheduler.transitions import JobState
from scheduler.view import View
from wire.record import record
from wire.types import Role

SAMPLE = 32
"""Servers that are compared."""

SOONER = 0.7
"""Of the time that it would take here: predictions are not exact, so less of a gain is none."""

MAX_MOVES = 2
"""Of one job for the sake of speed alone."""


@record(frozen=True, slots=True)
class _Place:
    """Predicted of a job on another server, in seconds from now."""

    begins_in: float
    ends_in: float


class StepMigration:
    """Two reasons. A server gives the role up, as it leaves or changes roles: what it gains must be more than what the
    job loses, and what would not end before the server leaves must go. It can leave once another has fetched what it
    handed over, which may have to end its present job first; to load other roles it need not wait for that. Or the
    job waits, or is slow, while another server has nothing to do.
    """

    def __init__(self, settings: ElasticSettings, suspects: Suspects):
        self._overhead = settings.handover_seconds
        self._suspects = suspects

    def worth(self, attempt: Attempt, view: View, now: float) -> str:
        server = attempt.server
        gives_up = Role.DIT not in server.serving
        here = attempt.remaining(now) if attempt.job.state is JobState.RUNNING else server.remaining(now)
        if not gives_up and (here < 2 * self._overhead or self._may_not_move(attempt, view)):
            return ""
        elsewhere = self._elsewhere(attempt, view, now, idle=not gives_up)
        if elsewhere is None:
            return ""
        if gives_up:
            return self._given_up(server, here, elsewhere, now)
        sooner = elsewhere.ends_in < SOONER * here
        return f"done in {elsewhere.ends_in:.1f} s elsewhere, in {here:.1f} s here" if sooner else ""

    def _given_up(self, server: Server, here: float, elsewhere: _Place, now: float) -> str:
        if server.leaves_at is not None and now + here > server.leaves_at:
            return "it would not end before its server leaves"
        gain = here - (elsewhere.begins_in if server.is_leaving else self._overhead)
        if gain > max(0.0, elsewhere.ends_in - here):
            return f"its server gives the role up {gain:.1f} s sooner"
        return ""

    def _may_not_move(self, attempt: Attempt, view: View) -> bool:
        model = attempt.job.request.spec.model
        return attempt.job.moves >= MAX_MOVES or view.waiting(model, Role.DIT) > 0

    def _elsewhere(self, attempt: Attempt, view: View, now: float, *, idle: bool) -> _Place | None:
        """The best of the others, of those that have nothing to do where they should be ``idle``."""
        job, server = attempt.job, attempt.server
        pace = attempt.remaining(now) / max(view.seconds(job, server), 1e-9)
        serving = islice(view.serving(job.request.spec.model, Role.DIT).values(), SAMPLE)
        able = (other for other in serving if other is not server and self._may_take(attempt, other))
        places = []
        for other in able:
            if not idle or other.is_idle:
                begins_in = other.remaining(now) + self._overhead
                places.append(_Place(begins_in, begins_in + pace * view.seconds(job, other)))
        return min(places, key=lambda place: place.ends_in, default=None)

    def _may_take(self, attempt: Attempt, other: Server) -> bool:
        if not other.spec.software or not other.may_run(Role.DIT) or self._suspects.is_suspect(other.id):
            return False
        if other.id in attempt.job.avoid or attempt.job.spec.lacks(other.spec.adapters):
            return False
        return not attempt.job.request.spec.exact or other.spec.computes_as(attempt.server.spec)

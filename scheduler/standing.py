"""Where requests under way stand: how many go before them, and how long they still take. Read only, and worked out when
somebody asks, never when something happens.
"""

from __future__ import annotations

from scheduler.policy import Line, Policies
from scheduler.state import Job, Request
from scheduler.view import View
from wire.record import record
from wire.types import ModelKey, RequestId

LINE_SECONDS = 1.0
"""How old the order of all that wait may be: it is drawn up once for everybody who asks."""
STALE_SHARE = 0.1
"""Of the seconds left: how old a prediction may be, so that a thousand who wait for minutes cost little.
It is counted down meanwhile."""


@record(frozen=True, slots=True)
class Standing:
    ahead: int | None
    """Waiting requests of the model that are likely to be served before it; None for one that does not wait."""
    seconds_left: float
    """Predicted, until its last picture."""


@record(frozen=True, slots=True)
class _Drawn:
    line: Line
    at: float


@record(frozen=True, slots=True)
class _Predicted:
    end: float
    holds_until: float


class Standings:
    def __init__(self, view: View, policies: Policies) -> None:
        self._view = view
        self._policies = policies
        self._lines: dict[ModelKey, _Drawn] = {}
        self._predicted: dict[RequestId, _Predicted] = {}
        """Of those that were asked about; some may be over."""

    def of(self, request_id: RequestId, now: float) -> Standing | None:
        """None for a request that is not under way."""
        request = self._view.live.get(request_id)
        if request is None:
            return None
        job = waiting_job(request)
        ahead = None if job is None else self._line(request.spec.model, now).ahead(job)
        return Standing(ahead, max(0.0, self._end(request, now) - now))

    def _end(self, request: Request, now: float) -> float:
        known = self._predicted.get(request.spec.id)
        if known is None or now >= known.holds_until:
            if len(self._predicted) > 2 * len(self._view.live):
                self._predicted = {one: known for one, known in self._predicted.items() if one in self._view.live}
            left = self._policies.admission.seconds_left(request, self._view, now)
            known = _Predicted(now + left, now + max(LINE_SECONDS, STALE_SHARE * left))
            self._predicted[request.spec.id] = known
        return known.end

    def _line(self, model: ModelKey, now: float) -> Line:
        drawn = self._lines.get(model)
        if drawn is None or now - drawn.at >= LINE_SECONDS:
            all_jobs = (waiting_job(request) for request in self._view.live.values() if request.spec.model == model)
            line = self._policies.order.line([job for job in all_jobs if job is not None], self._view)
            drawn = self._lines[model] = _Drawn(line, now)
        return drawn.line


def waiting_job(request: Request) -> Job | None:
    """The job with which a request goes on when its turn comes; None while a server has any of its jobs, or all of
    them are done.
    """
    best: Job | None = None
    for job in request.jobs.values():
        if job.spec.optional:
            continue
        if job.attempt is not None:
            return None
        if job.queued_key is not None and (best is None or best.queued_key is None or job.queued_key < best.queued_key):
            best = job
    return best

"""Which role a server serves next, which server a job goes to, and which server rather waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scheduler.elastic.settings import ElasticSettings
from scheduler.elastic.slow import SlowServers
from scheduler.elastic.suspects import Suspects
from scheduler.policy import Observer
from scheduler.spec import Timings
from scheduler.state import Attempt, Job, Server
from scheduler.view import View
from wire.types import ModelKey, Role

NEXT = {Role.ENHANCER: Role.ENCODER, Role.ENCODER: Role.DIT, Role.DIT: Role.DECODER}
PREVIOUS = {following: role for role, following in NEXT.items()}
FETCH_GAIN = 0.2
FIRST_FETCH = 0.1
"""Seconds that fetching inputs is assumed to take before it has been measured."""
ADAPTER_SECONDS = 0.3
"""That reading an adapter is assumed to take, which is not measured."""
NEVER = -60.0
"""A lead that is never reached: the next job waits for the device."""


class Backpressure(Observer):
    """Feed whoever would starve, otherwise finish what was begun.

    Serving stage r is worth μ_r · (min(Q_r, K) − Q_next), μ being the server's rate, Q the jobs that wait, and K the
    servers that depend on being fed: they hold the next stage and not this one. The last stage is worth μ · Q. Where
    every server holds every role nobody depends on another, the worth of all but the last stage is never above 0, and
    each server runs one request after the other as a monolithic replica would.
    """

    def __init__(self, settings: ElasticSettings, suspects: Suspects):
        self._margin = settings.lead_margin_seconds
        self._suspects = suspects
        self._slow = SlowServers(settings.slow_ratio, suspects)
        self._fetch_seconds: dict[str, float] = {}
        """Server name → usual seconds."""

    def role(self, server: Server, heads: Mapping[Role, Job], view: View, now: float) -> Role:  # noqa: ARG002
        heads = {role: job for role, job in heads.items() if not job.gives_way} or heads
        if len(heads) == 1:
            return next(iter(heads))
        downstream_first = sorted(heads, key=list(Role).index, reverse=True)
        mine = [role for role in downstream_first if not _is_left_to_helpers(role, heads, server, view)]
        return max(mine or downstream_first, key=lambda role: self._worth(role, heads[role], server, view))

    def server(self, job: Job, candidates: Sequence[Server], view: View, now: float) -> Server:
        """Where it is done first; of equals, where nobody is deprived of help, and then where its inputs lie. Adapters
        that a server had no job with yet take their time."""
        holders = {job.request.jobs[need].holder for need in job.spec.needs}

        def completion(server: Server) -> tuple[float, bool, bool]:
            loading = ADAPTER_SECONDS * len(job.spec.adapters - server.adapted)
            seconds = round(server.remaining(now) + loading + view.seconds(job, server), 3)
            return seconds, server.is_helping, server.id not in holders

        return min(candidates, key=completion)

    def lead_seconds(self, server: Server) -> float:
        """Time to fetch inputs; none of it while the job on the device goes on here as the next stage."""
        if any(NEXT.get(attempt.job.spec.role) in attempt.server.serving for attempt in server.on_device()):
            return NEVER
        return self._margin + self._fetch_seconds.get(server.spec.name, FIRST_FETCH)

    def withholds(self, server: Server, role: Role, view: View, now: float) -> bool:
        return self._suspects.withholds(server, role, view, now) or self._slow.withholds(server, role, view, now)

    def done(self, attempt: Attempt, timings: Timings, now: float) -> None:  # noqa: ARG002
        name = attempt.server.spec.name
        old = self._fetch_seconds.get(name, FIRST_FETCH)
        gain = 1.0 if timings.fetch > old else FETCH_GAIN  # too early costs less than too late
        self._fetch_seconds[name] = old + gain * (timings.fetch - old)

    def _worth(self, role: Role, job: Job, server: Server, view: View) -> float:
        model = server.spec.model
        waiting = view.waiting(model, role)
        following = NEXT.get(role)
        if following is not None:
            waiting = min(waiting, _dependents(model, role, following, view)) - view.waiting(model, following)
        return waiting / view.seconds(job, server)


def _is_left_to_helpers(role: Role, heads: Mapping[Role, Job], server: Server, view: View) -> bool:
    """Whether servers that can't take the stage before this one, for which work waits here, will do what waits of it.

    A dit server that decoded what an encoder server could decode would leave that one idle, or encoding far ahead, and
    dit jobs waiting. Busy servers count as help only while the stage before has work for everyone.
    """
    model, earlier = server.spec.model, PREVIOUS.get(role)
    if earlier is None or earlier not in heads:
        return False
    holders = view.serving(model, earlier)
    helpers = [other for other in view.serving(model, role).values() if other.id not in holders]
    if view.waiting(model, earlier) < len(holders):
        helpers = [other for other in helpers if other.is_idle]
    return view.waiting(model, role) <= len(helpers)


def _dependents(model: ModelKey, role: Role, following: Role, view: View) -> int:
    return len(view.serving(model, following).keys() - view.serving(model, role).keys())

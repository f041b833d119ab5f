"""When a slow server had better stay idle: while waiting for a faster one ends sooner than being served slowly.

With a queue long enough every server works. So nothing waits for ever, and no throughput is lost under load.
"""

from __future__ import annotations

from itertools import islice

from scheduler.elastic.suspects import Suspects
from scheduler.state import Job, Server
from scheduler.view import Station, View
from wire.types import ModelKey, Role, ServerId

SAMPLE = 64
"""Holders that are looked at."""
MEMORY_SECONDS = 1.0
"""Speeds are compared anew that often."""


class SlowServers:
    def __init__(self, ratio: float, suspects: Suspects):
        """``ratio``: times slower than the fastest at which a server counts as slow."""
        self._ratio = ratio
        self._suspects = suspects
        self._slow: dict[Station, tuple[float, frozenset[ServerId]]] = {}

    def withholds(self, server: Server, role: Role, view: View, now: float) -> bool:
        """Whether the best waiting job of this role is done sooner if the server leaves it to faster ones."""
        if server.id not in self._known(server.spec.model, role, view, now):
            return False
        job = _head(server.spec.model, role, view, now)
        return job is not None and self._is_better_elsewhere(job, server, view, now)

    def _known(self, model: ModelKey, role: Role, view: View, now: float) -> frozenset[ServerId]:
        until, slow = self._slow.get((model, role), (0.0, frozenset()))
        job = _head(model, role, view, now) if now >= until else None
        if job is not None:
            paces = {server.id: view.seconds(job, server) for server in view.serving(model, role).values()}
            limit = self._ratio * min(paces.values(), default=0.0)
            slow = frozenset(server for server, pace in paces.items() if pace > limit)
            self._slow[(model, role)] = (now + MEMORY_SECONDS, slow)
        return slow

    def _is_better_elsewhere(self, job: Job, server: Server, view: View, now: float) -> bool:
        here = view.seconds(job, server)
        holders = islice(view.serving(job.request.spec.model, job.spec.role).values(), SAMPLE)
        able = (other for other in holders if self._will_take(job.spec.role, other))
        faster = [(other, pace) for other in able if (pace := view.seconds(job, other)) * self._ratio < here]
        if not faster:
            return False
        mean = sum(pace for _, pace in faster) / len(faster)
        waiting = view.waiting(job.request.spec.model, job.spec.role) * mean
        busy = sum(other.remaining(now) for other, _ in faster)
        return (busy + waiting) / len(faster) + mean < here

    def _will_take(self, role: Role, server: Server) -> bool:
        """Whether waiting for it may end: one that is idle, and may not or is not trusted to work, might stay so."""
        return not self._suspects.is_suspect(server.id) and (not server.is_idle or server.may_run(role))


def _head(model: ModelKey, role: Role, view: View, now: float) -> Job | None:
    queue = view.queues.get((model, role))
    return queue.best(now) if queue is not None else None

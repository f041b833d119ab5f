"""When a server that has nothing to do computes half of another's guided steps: predicted gain against what it costs.

Nobody else pays for it but by the rest of one call of the denoiser: whoever helps stops as soon as it gets a job.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from scheduler.elastic.settings import ElasticSettings
from scheduler.elastic.suspects import Suspects
from scheduler.state import Attempt, Server
from scheduler.view import View

SAMPLE = 8
"""Servers that are compared."""


class SharedGuidance:
    def __init__(self, settings: ElasticSettings, suspects: Suspects):
        self._swap_seconds = settings.swap_seconds
        self._gain_seconds = settings.share_gain_seconds
        self._suspects = suspects

    def helper(self, attempt: Attempt, able: Iterable[Server], view: View) -> tuple[Server, float] | None:
        alone = attempt.predicted_seconds
        if alone < 2 * self._gain_seconds:
            return None  # it cannot gain more than half
        work = attempt.job.spec.work
        half, swaps = replace(work, cfg=False, more_passes=0.0), work.steps * self._swap_seconds

        def seconds(server: Server) -> float:
            return view.cost.seconds(half, server.spec.target, server.spec.name)

        own = seconds(attempt.server)
        others = [(seconds(server), server) for server in islice(able, SAMPLE) if self._may_help(server)]
        if not others:
            return None
        fastest, server = min(others, key=lambda other: other[0])
        together = max(own, fastest) + swaps
        return (server, together / alone) if alone - together >= self._gain_seconds else None

    def _may_help(self, server: Server) -> bool:
        return not self._suspects.is_suspect(server.id)

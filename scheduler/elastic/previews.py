"""Which intermediate pictures the finished one waits for: all of them, while the devices that decode have time for all.

Otherwise they are decoded when nothing else waits, and those that come too late are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import exp

from scheduler.policy import Observer
from scheduler.spec import JobSpec
from scheduler.state import Job, Request
from scheduler.view import View
from wire.types import ModelKey, Role

BUSIEST = 0.9
"""Share of their time, previews included, for which these devices may be asked while all previews are kept."""

MEMORY_SECONDS = 20.0
"""Of what was asked for lately: a minute would notice too late that there is too much to do."""

LEAST_SECONDS = 5.0
"""Over which a rate is measured at least."""


class WhileThereIsTime(Observer):
    def __init__(self) -> None:
        self._asked: dict[ModelKey, _Asked] = {}

    def opened(self, request: Request, view: View, now: float) -> None:
        model = request.spec.model
        target = view.targets.get(model)
        if target is None:
            return
        asked = self._asked.get(model)
        if asked is None:
            asked = self._asked[model] = _Asked(now)
        for spec in _all(job.spec for job in request.jobs.values() if job.holder is None):
            asked.add(spec.role, view.cost.seconds(spec.work, target), now)

    def keeps(self, preview: Job, view: View, now: float) -> bool:
        model = preview.request.spec.model
        asked, deciding = self._asked.get(model), view.serving(model, Role.DECODER)
        if asked is None:
            return True
        seconds = 0.0
        for role in Role:
            serving = view.serving(model, role)
            if serving:
                seconds += asked.per_second(role, now) * len(serving.keys() & deciding.keys()) / len(serving)
        return seconds < BUSIEST * len(deciding)


def _all(specs: Iterable[JobSpec]) -> Iterable[JobSpec]:
    for spec in specs:
        yield spec
        yield from spec.previews


class _Asked:
    """Of one model: reference seconds of each role, fading."""

    def __init__(self, now: float) -> None:
        self._began = self._at = now
        self._seconds = dict.fromkeys(Role, 0.0)

    def add(self, role: Role, seconds: float, now: float) -> None:
        fade = exp((self._at - now) / MEMORY_SECONDS)
        self._at = now
        for each in Role:
            self._seconds[each] *= fade
        self._seconds[role] += seconds

    def per_second(self, role: Role, now: float) -> float:
        # What a fading memory of its age weighs in all: by its full length, the first minute would look idle.
        span = MEMORY_SECONDS * (1 - exp((self._began - now) / MEMORY_SECONDS))
        return self._seconds[role] * exp((self._at - now) / MEMORY_SECONDS) / max(span, LEAST_SECONDS)

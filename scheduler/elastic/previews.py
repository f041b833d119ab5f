"""Which intermediate pictures the finished one waits for: all of them, while the devices that decode have time for all.

Otherwise they are decoded when nothing else waits, and those that come too late are left out.

Below half load all are to arrive, so there chance must not decide: of what was asked for lately, some moments tell of
twice the load that there is. They are kept until it is clear that there is no time for all, or too much waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, sqrt
from typing import NamedTuple

from scheduler.policy import Observer
from scheduler.state import Job, Request
from scheduler.view import View
from wire.types import ROLES, ModelKey, Role

BUSIEST = 0.9
"""Share of their time, previews included, for which these devices may be asked while all previews are kept."""

LIGHT = 0.5
"""Share of their time, without previews, for which no stage's devices are asked where all are to arrive."""

DOUBT = 2.0
"""Standard deviations by which what was asked for lately is taken to tell too much."""

MOST_WAITING = 4.0
"""Of the time that the request takes alone: work that waits for each of these devices, where all are to arrive."""

MEMORY_SECONDS = 20.0
"""Of what was asked for lately: a minute would notice too late that there is too much to do."""

LEAST_SECONDS = 5.0
"""Over which a rate is measured at least."""


class WhileThereIsTime(Observer):
    def __init__(self) -> None:
        self._asked: dict[ModelKey, _Asked] = {}
        self._promised: dict[ModelKey, _Asked] = {}
        """The same without previews."""

    def opened(self, request: Request, view: View, now: float) -> None:
        model = request.spec.model
        target = view.targets.get(model)
        if target is None:
            return
        specs = [job.spec for job in request.jobs.values() if job.holder is None]
        previews = [preview for spec in specs for preview in spec.previews]
        for asked, some in ((self._promised, specs), (self._asked, specs + previews)):
            seconds = dict.fromkeys(ROLES, 0.0)
            for spec in some:
                seconds[spec.role] += view.cost.seconds(spec.work, target)
            asked.setdefault(model, _Asked(now)).add(seconds, now)

    def keeps(self, preview: Job, view: View, now: float) -> bool:
        model = preview.request.spec.model
        if model not in self._asked:
            return True
        if not view.serving(model, Role.DECODER):
            return False
        shares = {role: _shares(role, model, view) for role in Role if view.serving(model, role)}
        deciding, asked = shares[Role.DECODER], self._asked[model].load(now)
        if asked.of(deciding) < BUSIEST:
            return True
        promised = self._promised[model].load(now)
        is_light = all(promised.surely(devices) < LIGHT for devices in shares.values())
        if not is_light or asked.surely(deciding) >= 1:
            return False
        own = (job for job in preview.request.jobs.values() if not job.spec.optional)
        alone = {job.spec.role: view.reference_seconds(job) for job in own}
        waiting = sum(share * view.waiting(model, role) * alone.get(role, 0.0) for role, share in deciding.items())
        return waiting < MOST_WAITING * sum(alone.values())


def _shares(role: Role, model: ModelKey, view: View) -> dict[Role, float]:
    """Of each role's work what each of the devices that serve this one has, in the mean."""
    devices = view.serving(model, role).keys()
    serving = {other: view.serving(model, other).keys() for other in Role}
    return {other: len(those & devices) / len(those) / len(devices) for other, those in serving.items() if those}


class _Load(NamedTuple):
    """Asked for per second, by role: in the mean, and by how much that is off by chance."""

    seconds: Mapping[Role, float]
    deviation: Mapping[Role, float]

    def of(self, shares: Mapping[Role, float]) -> float:
        """Of a device's time."""
        return sum(share * self.seconds[role] for role, share in shares.items())

    def surely(self, shares: Mapping[Role, float]) -> float:
        return self.of(shares) - DOUBT * sum(share * self.deviation[role] for role, share in shares.items())


class _Asked:
    """Of one model: reference seconds of each role, fading."""

    def __init__(self, now: float) -> None:
        self._began = self._at = now
        self._seconds = dict.fromkeys(Role, 0.0)
        self._squares = dict.fromkeys(Role, 0.0)
        """Of each request's seconds: the variance of their sum, as requests come by chance."""

    def add(self, seconds: Mapping[Role, float], now: float) -> None:
        """Of one request."""
        fade = exp((self._at - now) / MEMORY_SECONDS)
        self._at = now
        for role, its in seconds.items():
            self._seconds[role] = self._seconds[role] * fade + its
            self._squares[role] = self._squares[role] * fade**2 + its**2

    def load(self, now: float) -> _Load:
        # What a fading memory of its age weighs in all: by its full length, the first minute would look idle.
        span = MEMORY_SECONDS * (1 - exp((self._began - now) / MEMORY_SECONDS))
        weight = exp((self._at - now) / MEMORY_SECONDS) / max(span, LEAST_SECONDS)
        return _Load(
            {role: its * weight for role, its in self._seconds.items()},
            {role: sqrt(its) * weight for role, its in self._squares.items()},
        )

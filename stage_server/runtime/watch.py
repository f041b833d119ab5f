"""Notices an engine that stands still: a job, or a change of roles, without a sign of life for many times what it
should take. A device that hangs cannot be freed from within its process, so all that helps is to end that. Pure.

Only what has to do with the device is watched, copies to it and from it too: jobs wait for inputs, for room and for
others as long as they must. A job that was told to stop is watched on, since it cannot stop while its device hangs. A
false alarm costs a restart and the work of others, so it takes a lot: both ``CoreTimes.stuck`` seconds and ``FACTOR``
times the expectation, and more for what this process has not computed before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from stage_server.runtime.events import (
    Begin,
    Broke,
    Computed,
    DeviceTaken,
    DeviceYielded,
    Effect,
    Event,
    InputsFetched,
    InputsHere,
    JobEvent,
    JobKey,
    Previewed,
    Published,
    Received,
    RolesBegun,
    RolesRested,
    RoomFreed,
    Stepped,
    Stopped,
    Surrendered,
)
from wire.to_stage import Run
from wire.types import Role

FACTOR = 20.0
"""Times what was predicted, or was seen in jobs alike: a device that is throttled or shared is slow by less."""

FIRST_TIME = 5.0
"""Times the patience, for the first of a shape: kernels are chosen or compiled then, and predictions are guesses."""

SHAPES = 256
"""The latest that are remembered: a forgotten one is waited for as if it were new."""

Shape = tuple[Role, str, int, int]
"""Role, workflow, width, height."""


@dataclass(frozen=True, slots=True)
class Stuck:
    job: JobKey | None
    """None: the change of roles."""
    silent: float
    """Seconds."""


@dataclass(slots=True)
class _Pulse:
    """Of something that has the device. Times are on the clock of ``Watch.see``."""

    shape: Shape | None
    expected: float
    """Seconds between two signs of life, 0 if unknown."""
    predicted: float = 0.0
    """Of the whole job."""
    sign: float | None = None
    """The last one; None while it has not, or has not again, the device."""
    longest: float = 0.0
    """Between two signs."""

    def beat(self, now: float) -> None:
        if self.sign is not None:
            self.longest = max(self.longest, now - self.sign)
        self.sign = now

    def rest(self, now: float) -> None:
        self.beat(now)
        self.sign = None


class Watch:
    def __init__(self, patience: float, load_seconds: float = 0.0) -> None:
        """``patience``: seconds without a sign of life that are always forgiven; 0 watches nothing.

        ``load_seconds``: what loading every role is expected to take.
        """
        self._patience = patience
        self._load_seconds = load_seconds
        self._jobs: dict[JobKey, _Pulse] = {}
        self._loading: _Pulse | None = None
        self._usual: OrderedDict[Shape, float] = OrderedDict()
        """Shape → seconds of the longest silence of the job that had the shortest one: what is normal for it."""

    def see(self, event: Event, effects: Iterable[Effect], now: float) -> None:
        """What happened, and what the core makes of it. Events of jobs and roles are signs of life."""
        for effect in effects:
            if isinstance(effect, Begin):
                self._jobs[effect.job] = _pulse(effect.run)
        match event:  # what comes most often comes first
            case Received() | RoomFreed():
                pass
            case (
                InputsFetched() | InputsHere() | DeviceTaken() | Computed() | DeviceYielded() | Stepped() | Previewed()
            ):
                self._heard(event, now)
            case Published(job) | Broke(job) | Stopped(job) | Surrendered(job):
                self._ended(job, has_result=isinstance(event, Published))
            case RolesBegun():
                self._loading = _Pulse(None, self._load_seconds)
                self._loading.beat(now)
            case RolesRested():
                self._loading = None

    def excuse(self, seconds: float) -> None:
        """The process itself stood still for so long, its jobs' threads among it."""
        for pulse in self._pulses():
            if pulse.sign is not None:
                pulse.sign += seconds

    def next_due(self) -> float | None:
        """When to ask ``stuck``."""
        return min([due for pulse in self._pulses() if (due := self._due(pulse)) is not None], default=None)

    def stuck(self, now: float) -> Stuck | None:
        for job, pulse in (*self._jobs.items(), (None, self._loading)):
            due = self._due(pulse) if pulse is not None else None
            if pulse is not None and pulse.sign is not None and due is not None and due <= now:
                return Stuck(job, now - pulse.sign)
        return None

    # --- inside ---

    def _heard(self, event: JobEvent, now: float) -> None:
        pulse = self._jobs[event.job]
        match event:
            case InputsHere() | DeviceYielded():
                pulse.rest(now)
            case Stepped(steps=steps):
                pulse.expected = pulse.predicted / max(1, steps)
                pulse.beat(now)
            case _:
                pulse.beat(now)

    def _ended(self, job: JobKey, *, has_result: bool) -> None:
        pulse = self._jobs.pop(job)
        if has_result and pulse.shape is not None:
            usual = min(self._usual.pop(pulse.shape, pulse.longest), pulse.longest)
            self._usual[pulse.shape] = usual
            if len(self._usual) > SHAPES:
                self._usual.popitem(last=False)

    def _due(self, pulse: _Pulse) -> float | None:
        if not self._patience or pulse.sign is None:
            return None
        usual = self._usual.get(pulse.shape) if pulse.shape is not None else None
        at_least = self._patience * (FIRST_TIME if usual is None else 1.0)
        return pulse.sign + max(at_least, FACTOR * max(pulse.expected, usual or 0.0))

    def _pulses(self) -> Iterable[_Pulse]:
        return (*self._jobs.values(), *([] if self._loading is None else [self._loading]))


def _pulse(run: Run) -> _Pulse:
    params = run.members[0].params
    shape = (run.role, params.workflow, params.width, params.height)
    # The first step is not told from what precedes it, so until it has come the whole job's time is expected.
    return _Pulse(shape, run.predicted_seconds, run.predicted_seconds)

"""A simulated accelerator: one task at a time, interruptible at the ends of steps (``stage_server.runtime.baton``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, floor
from typing import Any, Protocol

from scheduler.sim.clock import Clock

REPORT_SECONDS = 0.5
"""Least time between two reports of a task's progress."""


@dataclass(slots=True, eq=False)
class Task:
    steps: int
    step_seconds: float
    """At the device's usual speed."""
    urgent: bool = False
    shows: tuple[int, ...] = ()
    """Steps after which there is something to show."""
    step: int = 0
    keep_seconds: float = 0.0
    """Once it has ended, only urgent tasks get the device for so long."""
    is_stopping: bool = False
    compute: float = 0.0
    paused: float = 0.0
    began: float | None = None
    left_at: float = 0.0
    reported_at: float = 0.0
    reported_step: int = 0
    order: int = field(default=0)


class Listener(Protocol):
    def started(self, task: Task) -> None:
        """Also after a pause."""

    def paused(self, task: Task) -> None: ...

    def progressed(self, task: Task, step_seconds: float) -> None: ...

    def showed(self, task: Task) -> None:
        """It has reached one of the steps that it shows."""

    def stopped(self, task: Task) -> None:
        """Before its end, as ``Device.stop`` asked for."""

    def ended(self, task: Task) -> None: ...

    def busy(self, task: Task, since: float) -> None:
        """The device computed it from ``since`` until now."""


@dataclass(slots=True, eq=False)
class _Stretch:
    """Steps computed without looking up: nobody wants to know of the ends of those in between."""

    began: float
    steps: int
    pace: float


class Device:
    """``later(delay, call, …)`` must not call while the server is frozen, and never once it is dead."""

    def __init__(self, clock: Clock, later: Callable[..., None], listener: Listener, slowness: float = 1.0):
        self._clock = clock
        self._later: Callable[..., Any] = later
        self._listener = listener
        self._slowness = slowness
        self._line: list[Task] = []
        self._owner: Task | None = None
        self._stretch: _Stretch | None = None
        self._orders = 0
        self._keeper: Task | None = None
        """It has ended, and keeps the device for an urgent task."""

    def line_up(self, task: Task) -> None:
        self._orders += 1
        task.order = self._orders
        self._line.append(task)
        if self._owner is None:
            self._next()
        elif task.urgent:
            self._look_up()

    def stop(self, task: Task) -> None:
        """Out of the line at once, or off the device at the end of its step."""
        if task in self._line:
            self._line.remove(task)
            self._listener.stopped(task)
        elif task is self._owner:
            task.is_stopping = True
            self._look_up()

    def release(self, task: Task) -> None:
        """It keeps the device no longer, if it does."""
        if task is self._keeper:
            self._keeper = None
            self._next()

    def slow_down(self, factor: float) -> None:
        """From the next step on, every step takes ``factor`` times as long as at the usual speed."""
        self._slowness = factor
        self._look_up()

    def _next(self) -> None:
        if self._owner is not None or not self._line:
            return
        task = min(self._line, key=lambda t: (not t.urgent, t.order))
        if self._keeper is not None and not task.urgent:
            return
        self._keeper = None
        self._line.remove(task)
        now = self._clock.now
        if task.began is None:
            task.began = now
        else:
            task.paused += now - task.left_at
        task.reported_at, task.reported_step = now, task.step
        self._owner = task
        self._listener.started(task)
        self._run(task)

    def _run(self, task: Task) -> None:
        pace = task.step_seconds * self._slowness
        until_report = ceil(REPORT_SECONDS / pace) if pace > 0 else task.steps
        interrupted = task.is_stopping or self._is_wanted(task)
        until_shown = min((step - task.step for step in task.shows if step > task.step), default=task.steps)
        steps = 1 if interrupted else min(task.steps - task.step, until_shown, max(1, until_report))
        self._stretch = _Stretch(self._clock.now, steps, pace)
        self._later(steps * pace, self._reached, self._stretch)

    def _look_up(self) -> None:
        """End the present stretch with the step in hand."""
        stretch = self._stretch
        if stretch is None or stretch.pace <= 0:
            return
        now = self._clock.now
        steps = floor((now - stretch.began) / stretch.pace) + 1
        if steps < stretch.steps:
            self._stretch = _Stretch(stretch.began, steps, stretch.pace)
            self._later(max(0.0, stretch.began + steps * stretch.pace - now), self._reached, self._stretch)

    def _reached(self, stretch: _Stretch) -> None:
        task = self._owner
        if stretch is not self._stretch or task is None:
            return  # cut short
        self._stretch = None
        now = self._clock.now
        task.step += stretch.steps
        task.compute += now - stretch.began
        self._listener.busy(task, stretch.began)
        if task.is_stopping or task.step >= task.steps:
            self._owner = None
            self._end(task)
            self._next()
            return
        if task.step in task.shows:
            self._listener.showed(task)
        if now - task.reported_at >= REPORT_SECONDS:
            since = task.step - task.reported_step
            self._listener.progressed(task, (now - task.reported_at) / since)
            task.reported_at, task.reported_step = now, task.step
        if self._is_wanted(task):
            self._pass_on(task)
        else:
            self._run(task)

    def _end(self, task: Task) -> None:
        if task.is_stopping:
            self._listener.stopped(task)
            return
        if task.keep_seconds > 0:
            self._keeper = task
            self._later(task.keep_seconds, self.release, task)
        self._listener.ended(task)

    def _is_wanted(self, task: Task) -> bool:
        return not task.urgent and any(other.urgent for other in self._line)

    def _pass_on(self, task: Task) -> None:
        self._owner = None
        task.left_at = self._clock.now
        self._line.append(task)
        self._listener.paused(task)
        self._next()

"""A simulated accelerator, interruptible at the ends of steps: the twin of ``stage_server.runtime.baton``.

One task owns it at a time, or several that share it and are of one kind. Those take their steps together: a newcomer
becomes an owner as soon as there is room, takes its first step with the others' next one, and each leaves after its
last. An urgent task gets the device once every owner has come to the end of its step. The first in line goes first, so
one that cannot join is not overtaken by those that could.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, floor
from typing import Any, Protocol

from scheduler import sharing
from scheduler.sim.clock import Clock

REPORT_SECONDS = 0.5
"""Least time between two reports of a task's progress."""


@dataclass(slots=True, eq=False)
class Task:
    steps: int
    step_seconds: float
    """At the device's usual speed."""
    urgent: bool = False
    kind: object = None
    """Tasks of equal kinds compute together; None: this one has the device alone."""
    together: int = 1
    """Of its kind that may own the device at once."""
    marginal: float = 1.0
    """What a further one of its kind adds to a step, in steps."""
    shows: tuple[int, ...] = ()
    """Steps after which there is something to show."""
    step: int = 0
    keep_seconds: float = 0.0
    """Once it has ended, only urgent tasks get the device for so long."""
    is_stopping: bool = False
    compute: float = 0.0
    weighed: float = 0.0
    """Its steps, each times the tasks that took it together."""
    paused: float = 0.0
    began: float | None = None
    left_at: float = 0.0
    reported_at: float = 0.0
    reported_step: int = 0
    order: int = field(default=0)
    owner: Owner | None = None
    """Whose it is, where several servers have the device."""


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
        """The device computed it from ``since`` until now, perhaps together with others."""


class Owner(Listener, Protocol):
    def later(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        """See ``Device``."""


@dataclass(slots=True, eq=False)
class _Stretch:
    """Steps computed without looking up: nobody wants to know of the ends of those in between."""

    tasks: tuple[Task, ...]
    """That take them together."""
    began: float
    steps: int
    pace: float


class Device:
    """``later(delay, call, …)`` must not call while the server is frozen, and never once it is dead."""

    def __init__(
        self,
        clock: Clock,
        later: Callable[..., None],
        listener: Listener,
        slowness: float = 1.0,
        report_seconds: float = REPORT_SECONDS,
    ):
        self._clock = clock
        self._report_seconds = report_seconds
        self._later: Callable[..., Any] = later
        self._listener = listener
        self._slowness = slowness
        self._line: list[Task] = []
        self._owners: list[Task] = []
        self._stretch: _Stretch | None = None
        self._orders = 0
        self._keeper: Task | None = None
        """It has ended, and keeps the device for an urgent task."""
        self._is_settling = False
        """A step has ended, and not all owners have been asked whether they go on."""

    def line_up(self, task: Task) -> None:
        self._orders += 1
        task.order = self._orders
        self._line.append(task)
        self._hand_over()
        if task in self._line and task.urgent:
            self._look_up()

    def stop(self, task: Task) -> None:
        """Out of the line at once, or off the device at the end of its step."""
        if task in self._line:
            self._line.remove(task)
            self._told(task).stopped(task)
            self._hand_over()  # it may have been in the way of others
        elif task in self._owners:
            task.is_stopping = True
            self._look_up()

    def release(self, task: Task) -> None:
        """It keeps the device no longer, if it does."""
        if task is self._keeper:
            self._keeper = None
            self._hand_over()

    def repace(self, task: Task, step_seconds: float) -> None:
        """From the next step on each of the task's takes so long, at the usual speed."""
        task.step_seconds = step_seconds
        self._look_up()

    def slow_down(self, factor: float) -> None:
        """From the next step on, every step takes ``factor`` times as long as at the usual speed."""
        self._slowness = factor
        self._look_up()

    def _told(self, task: Task) -> Listener:
        return task.owner or self._listener

    def _after(self, task: Task, delay: float, call: Callable[..., None], what: object) -> None:
        later = task.owner.later if task.owner is not None else self._later
        later(delay, call, what)

    def _hand_over(self) -> None:
        """Whoever may, becomes an owner; then the next steps are taken, or the present ones end where one has come."""
        while self._line:
            task = min(self._line, key=lambda t: (not t.urgent, t.order))
            if not self._may_enter(task):
                break
            self._keeper = None
            self._line.remove(task)
            self._enter(task)
        if self._is_settling:
            return
        if self._stretch is None:
            self._run()
        elif len(self._owners) > len(self._stretch.tasks):
            self._look_up()

    def _may_enter(self, task: Task) -> bool:
        if self._owners:
            has_room = len(self._owners) < task.together
            return task.kind is not None and not task.urgent and has_room and self._owners[0].kind == task.kind
        return task.urgent or self._keeper is None

    def _enter(self, task: Task) -> None:
        now = self._clock.now
        if task.began is None:
            task.began = now
        else:
            task.paused += now - task.left_at
        task.reported_at, task.reported_step = now, task.step
        self._owners.append(task)
        self._told(task).started(task)

    def _run(self) -> None:
        """The owners' next steps. They end together."""
        owners = tuple(self._owners)
        if not owners:
            return
        each = sum(task.step_seconds for task in owners) / len(owners)
        pace = each * sharing.stretch(len(owners), owners[0].marginal) * self._slowness
        steps = min(self._uninterrupted(task, pace) for task in owners)
        self._stretch = _Stretch(owners, self._clock.now, steps, pace)
        self._after(owners[0], steps * pace, self._reached, self._stretch)

    def _uninterrupted(self, task: Task, pace: float) -> int:
        """Steps until somebody wants to know of this task, or it ends."""
        if task.is_stopping or self._is_wanted(task):
            return 1
        until_report = ceil(self._report_seconds / pace) if pace > 0 else task.steps
        until_shown = min((step - task.step for step in task.shows if step > task.step), default=task.steps)
        return min(task.steps - task.step, until_shown, max(1, until_report))

    def _look_up(self) -> None:
        """End the present stretch with the step in hand."""
        stretch = self._stretch
        if stretch is None or stretch.pace <= 0:
            return
        now = self._clock.now
        steps = floor((now - stretch.began) / stretch.pace) + 1
        if steps < stretch.steps:
            self._stretch = _Stretch(stretch.tasks, stretch.began, steps, stretch.pace)
            left = max(0.0, stretch.began + steps * stretch.pace - now)
            self._after(stretch.tasks[0], left, self._reached, self._stretch)

    def _reached(self, stretch: _Stretch) -> None:
        if stretch is not self._stretch:
            return  # cut short
        self._stretch = None
        self._told(stretch.tasks[0]).busy(stretch.tasks[0], stretch.began)
        self._is_settling = True
        for task in tuple(self._owners):
            if task in stretch.tasks:
                task.step += stretch.steps
                task.compute += self._clock.now - stretch.began
                task.weighed += stretch.steps * len(stretch.tasks)
                self._report(task)
            self._go_on_or_leave(task, has_stepped=task in stretch.tasks)
            self._hand_over()
        self._is_settling = False
        self._hand_over()

    def _report(self, task: Task) -> None:
        now = self._clock.now
        if task.is_stopping or task.step >= task.steps:
            return
        if task.step in task.shows:
            self._told(task).showed(task)
        if now - task.reported_at >= self._report_seconds:
            since = task.step - task.reported_step
            self._told(task).progressed(task, (now - task.reported_at) / since)
            task.reported_at, task.reported_step = now, task.step

    def _go_on_or_leave(self, task: Task, has_stepped: bool) -> None:
        """Who came during the others' step is not asked to pause before it has taken one of its own."""
        if task.is_stopping or task.step >= task.steps:
            self._owners.remove(task)
            self._end(task)
        elif has_stepped and self._is_wanted(task):
            self._pass_on(task)

    def _end(self, task: Task) -> None:
        if task.is_stopping:
            self._told(task).stopped(task)
            return
        if task.keep_seconds > 0:
            self._keeper = task
            self._after(task, task.keep_seconds, self.release, task)
        self._told(task).ended(task)

    def _is_wanted(self, task: Task) -> bool:
        return not task.urgent and any(other.urgent for other in self._line)

    def _pass_on(self, task: Task) -> None:
        self._owners.remove(task)
        task.left_at = self._clock.now
        self._line.append(task)
        self._told(task).paused(task)

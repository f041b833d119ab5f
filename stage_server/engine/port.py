"""The one place through which every call of a heavy module passes, whichever job makes it.

A job's view of the pipeline has stand-ins for the denoiser, the text encoders and the VAE, with the same weights. A job
that shares the device parks in its call until all that share it have come to one; then those of equal signature are
computed as one, and everybody gets its own part. A job alone, or one that does not share, calls the module itself with
the very same arguments. Jobs run the loops of their pipelines unmodified, so they may have any number of steps, and
come and go between two of them.

What else concerns each call belongs here too. Cancellation does: no call begins for a job that was told to stop. For
adapters there is ``activate``: the weights are shared by jobs that interleave, so what changes them is switched on for
one call, and calls are joined only where it is equal.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from stage_server.engine.base import JobControl
from stage_server.engine.blank import blank
from stage_server.engine.halves import Halves
from stage_server.engine.joining import (
    COMMON,
    Arguments,
    CannotJoin,
    Plan,
    differences,
    exchanged,
    is_rough,
    joined,
    tells_apart,
)
from stage_server.engine.rendezvous import Back, Call, Rendezvous, unattended

Activate = Callable[[Any, Hashable], AbstractContextManager[object]]
"""Module and what a job wants it to be changed by, a set of adapters for example → the change, for one call."""

Compiled = Callable[[Any, Arguments], Any]
"""Module and arguments → the module itself, or what computes the same faster and not to the bit."""

_METHODS = ("encode", "decode")
"""What modules are called by beside ``module(…)``."""

_REMEMBERED = 1024
"""Signatures of which it is known how they join. Each is a model and a size."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """One call of one job."""

    module: Any
    called: Any
    """What computes it: ``module`` itself, or a double of it that is this job's own."""
    method: str
    """``__call__`` or one of ``_METHODS``."""
    arguments: Arguments
    adapters: Hashable
    check: Callable[[], None]
    fast: bool = False
    """Its result need not be that of a run alone to the bit."""

    def key(self) -> Hashable:
        """Equal for calls that may be tried as one."""
        return id(self.called), self.method, self.adapters, self.arguments.signature()

    def kind(self) -> Hashable:
        """The same for a module that was loaded anew: what is known of its joining outlives it."""
        return type(self.module), self.method, self.arguments.signature()


class ForwardPort:
    """One per engine. ``activate`` is how adapters are switched on; ``compiled`` is what computes a fast call."""

    def __init__(
        self,
        activate: Activate = lambda _module, _adapters: nullcontext(),
        compiled: Compiled = lambda module, _arguments: module,
    ) -> None:
        self._activate = activate
        self._compiled = compiled
        self._rendezvous: Rendezvous[Forward] = Rendezvous(self._compute)
        self._plans: dict[Hashable, Plan] = {}
        self._most: dict[Hashable, int] = {}
        """Kind → calls that can be joined, where that is known to be limited; 1: none."""

    @contextmanager
    def open(
        self, control: JobControl, *, share: bool = False, adapters: Hashable = None, fast: bool = False
    ) -> Iterator[JobPort]:
        """For one job, which takes part while this lasts."""
        if not share:
            yield JobPort(control, adapters, self._alone, unattended, fast=fast)
            return
        with self._rendezvous.attended():
            yield JobPort(control, adapters, self._in_company, self._rendezvous.away, fast=fast)

    def _alone(self, forward: Forward) -> tuple[Any, int]:
        return self._call(forward, forward.arguments), 1

    def _in_company(self, forward: Forward) -> tuple[Any, int]:
        call = self._rendezvous.call(forward)
        return call.result, call.company

    # --- on the thread that arrived last ---

    def _compute(self, calls: Sequence[Call[Forward]]) -> None:
        groups: dict[Hashable, list[Call[Forward]]] = {}
        for call in calls:
            try:
                call.work.check()
                groups.setdefault(call.work.key() if len(calls) > 1 else None, []).append(call)
            except Exception as error:  # cancelled; or arguments that nobody has thought of
                call.fail(error)
        company = sum(map(len, groups.values()))
        for group in groups.values():
            for call in group:
                call.company = company
            self._compute_equals(group)

    def _compute_equals(self, calls: list[Call[Forward]]) -> None:
        while calls := [call for call in calls if not call.has_outcome]:
            most = self._at_once(calls)
            if most == 1:
                self._single(calls[0])
            else:
                self._join(calls[:most])  # if that fails it is fewer at once from now on

    def _at_once(self, calls: Sequence[Call[Forward]]) -> int:
        """The first two of a kind show whether and how it can be joined."""
        if len(calls) == 1:
            return 1
        kind = calls[0].work.kind()
        return min(len(calls), self._most.get(kind, len(calls) if kind in self._plans else 2))

    def _single(self, call: Call[Forward]) -> None:
        try:
            call.succeed(self._call(call.work, call.work.arguments))
        except Exception as error:  # this job's own: the others go on
            call.fail(error)

    def _join(self, calls: Sequence[Call[Forward]]) -> None:
        """At least the first of them gets an outcome, or fewer are to be tried."""
        first, *others = calls
        kind = first.work.kind()
        plan = self._plans.get(kind)
        alike = [first]
        try:
            if plan is not None:
                alike += [call for call in others if not _differences(first, call, plan.proven)]
            if len(alike) == 1:
                self._learn(kind, first, others[0])
                return
            together = self._call(first.work, joined([call.work.arguments for call in alike]))
            parts = self._plans[kind].split(together, len(alike))
        except Exception as error:  # whatever it is: fewer are tried, in the end each by itself
            self._limit(kind, max(2, len(alike)), error)
            return
        for call, part in zip(alike, parts, strict=True):
            call.succeed(part)

    def _learn(self, kind: Hashable, first: Call[Forward], second: Call[Forward]) -> None:
        """Compute both alone, and then as one, to see whether each one's part of that is its own."""
        plan = self._plans.get(kind)
        differ = _differences(first, second, plan.proven if plan is not None else ())
        self._single(first)
        if COMMON in differ or (plan is not None and differ in plan.refused):
            return
        self._single(second)
        if first.error is not None or second.error is not None or not tells_apart(first.result, second.result):
            return
        together = self._call(first.work, joined([first.work.arguments, second.work.arguments]))
        alone, mistaken = [first.result, second.result], self._mistaken(first, second, differ)
        if plan is None:
            members = first.work.arguments.members
            self._remember(self._plans, kind, Plan(alone, together, members, differ, mistaken))
            return
        try:
            plan.prove(alone, together, differ, mistaken)
        except CannotJoin as error:
            _log.info("%s of jobs that differ in %s cannot be computed as one: %s", _name(kind), differ, error)

    def _mistaken(self, first: Call[Forward], second: Call[Forward], places: Collection[Hashable]) -> list[Any]:
        """What the second would get if the module read the first one's arguments for both, where that may pass for
        rounding."""
        results = list[Any]()
        if is_rough(second.result):
            for arguments in exchanged(second.work.arguments, first.work.arguments, places):
                try:
                    results.append(self._call(second.work, arguments))
                except Exception as error:  # they do not fit each other, which proves nothing
                    _log.debug("arguments of two jobs cannot be exchanged: %s", error)
        return results

    def _limit(self, kind: Hashable, calls: int, error: Exception) -> None:
        """Not so many again: half as many where only memory was short, else none."""
        short = is_out_of_memory(error)
        self._remember(self._most, kind, calls // 2 if short else 1)
        reason = "the device has not enough memory" if short else f"{type(error).__name__}: {error}"
        _log.info("%s of %d jobs cannot be computed as one: %s", _name(kind), calls, reason)

    def _remember(self, memory: dict[Hashable, Any], kind: Hashable, value: object) -> None:
        if len(memory) >= _REMEMBERED:
            memory.clear()
        memory[kind] = value

    def _call(self, forward: Forward, arguments: Arguments) -> Any:
        with torch.no_grad(), self._activate(forward.module, forward.adapters):
            called = forward.called
            if forward.fast and called is forward.module and forward.method == "__call__" and not forward.adapters:
                called = self._compiled(called, arguments)
            return getattr(called, forward.method)(*arguments.args, **arguments.kwargs)


class JobPort:
    """One job's side of the port."""

    def __init__(
        self,
        control: JobControl,
        adapters: Hashable,
        compute: Callable[[Forward], tuple[Any, int]],
        away: Callable[[], AbstractContextManager[Back]],
        *,
        fast: bool = False,
    ) -> None:
        self._control = control
        self._adapters = adapters
        self._compute = compute
        self._away = away
        self._fast = fast
        self.decoded: Callable[[Any], None] = lambda _picture: None
        """Shown what the VAE decodes, before it is rounded to 8 bits a channel."""
        self.passed_over: frozenset[Any] = frozenset()
        """Modules that compute nothing for now: the steps for which they are called were done elsewhere."""
        self.halves: Halves | None = None
        """Of a job that shares its guided steps with another server."""
        self.instead: Callable[[Any], Any] = lambda module: module
        """Module → what computes its next call."""
        self.around: tuple[Any, Callable[[Any], AbstractContextManager[object]]] | None = None
        """A module, and the context in which it is called for now. Only of jobs that do not share the device."""

    def call(self, module: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        """What ``module`` gives for these arguments. Raises ``JobCancelled``, or what the module raises."""
        self._control.check()
        if module in self.passed_over:
            return blank(module, args, kwargs)
        compute = partial(self._computed, module, method, args, kwargs)
        result = compute() if self.halves is None else self.halves.call(module, compute)
        if method == "decode":
            self.decoded(result[0])  # of a tuple, or of a DecoderOutput
        return result

    def _computed(self, module: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments, called = Arguments(args, kwargs), self.instead(module)
        forward = Forward(module, called, method, arguments, self._adapters, self._control.check, self._fast)
        with self._changed(module):
            result, company = self._compute(forward)
        self._control.computed(company)
        return result

    def _changed(self, module: Any) -> AbstractContextManager[object]:
        if self.around is None or self.around[0] is not module:
            return nullcontext()
        return self.around[1](module)

    def step_done(self, step: int, steps: int) -> None:
        """Report; if a more urgent job wants the device, let it have it. Raises ``JobCancelled``, ``HandOver`` or
        ``PartnerLeft``."""
        self._control.step_done(step, steps)
        if step < steps and self._control.wanted():
            if self.halves is not None:
                self.halves.part()  # which would wait in vain
            with self._away() as back:
                self._control.pause(step, back)

    def stand_in(self, module: torch.nn.Module) -> torch.nn.Module:
        """A module with the same weights, attributes and class, whose calls pass through here.

        It has to be a module, for blocks ask modules for the device.
        """
        double = copy.copy(module)
        kind: Any = type(module)
        double.__class__ = _ported(kind)
        double.__dict__["port_module"] = module
        double.__dict__["port_call"] = partial(self.call, module, "__call__")
        for method in _METHODS:
            if hasattr(module, method):
                double.__dict__[method] = partial(self.call, module, method)
        return double


def original(module: torch.nn.Module) -> torch.nn.Module:
    """The module for which a stand-in stands, or itself."""
    return module.__dict__.get("port_module", module)  # type: ignore[no-any-return]


def is_out_of_memory(error: BaseException) -> bool:
    """Torch's allocator for CPUs has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _differences(one: Call[Forward], other: Call[Forward], proven: Collection[Hashable]) -> frozenset[Hashable]:
    return differences(one.work.arguments, other.work.arguments, proven)


def _name(kind: Hashable) -> str:
    return f"{kind[0].__name__}.{kind[1]}" if isinstance(kind, tuple) else ""


@cache
def _ported(kind: Any) -> Any:
    """A class like ``kind``, whose instances are called by way of the port."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        return self.__dict__["port_call"](*args, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": __call__, "__module__": kind.__module__})

"""What the scheduler decided lately, and why: a bounded log for operators. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import islice

from scheduler import actions as act
from scheduler import events as ev
from scheduler.spec import Input, Output, RequestSpec, ServerSpec
from scheduler.state import Job
from wire.record import record
from wire.types import Epoch, RequestId, ServerId, server_name

REMEMBERED = 4096
MOST_SHOWN = 200

NOTABLE = (ev.ServerJoined, ev.ServerLost, ev.ServerLeaving, ev.ServerPinned, ev.RolesReady, ev.RolesFailed)
"""Events worth telling of even when nothing had to be done."""
NEVER_PASSED_OVER = (*NOTABLE, ev.PlanReady)

HOUSEKEEPING = (act.Release, act.SolvePlan, act.TryPeer)


@record(frozen=True, slots=True)
class Decision:
    at: float
    """Unix time."""
    event: ev.Event
    action: act.Action | None
    """None: nothing had to be done about the event."""

    def mentions(self, request: RequestId, epochs: frozenset[Epoch]) -> bool:
        match self.action:
            case act.Run(job=job) | act.Help(job=job):
                return _request_of(job) == request
            case act.Cancel(epochs=cancelled):
                return not epochs.isdisjoint(cancelled)
            case action:
                return getattr(action, "request", None) == request

    def concerns(self, server: str) -> bool:
        return any(server_name(named) == server for named in (_server_of(self.action), _server_of(self.event)))

    def told(self) -> dict[str, object]:
        """For people, as JSON."""
        decision = {"decision": type(self.action).__name__, **_plain(self.action)} if self.action else {}
        return {"at": round(self.at, 3), **decision, "event": {"kind": type(self.event).__name__, **_plain(self.event)}}


class Decisions:
    """The latest ``REMEMBERED``, without housekeeping. Role plans are kept apart: there is one a second under load."""

    def __init__(self) -> None:
        self._log: deque[Decision] = deque(maxlen=REMEMBERED)
        self.plan: tuple[float, ev.PlanReady, Sequence[act.AssignRoles]] | None = None
        """The latest: unix time, answer of the solver, moves that were made of it."""

    def note(self, event: ev.Event, actions: Sequence[act.Action], at: float) -> None:
        """``actions`` are what was done about ``event``, at unix time ``at``."""
        if not actions and not isinstance(event, NEVER_PASSED_OVER):
            return  # as with most of them
        kept = [action for action in actions if not isinstance(action, HOUSEKEEPING)]
        if isinstance(event, ev.PlanReady):
            self.plan = (at, event, [action for action in kept if isinstance(action, act.AssignRoles)])
        for action in kept:
            self._log.append(Decision(at, event, action))
        if not kept and isinstance(event, NOTABLE):
            self._log.append(Decision(at, event, None))

    def about_request(self, request: RequestId) -> list[dict[str, object]]:
        """The latest, oldest first."""
        runs = [decision.action for decision in self._log if isinstance(decision.action, act.Run)]
        epochs = frozenset(run.epoch for run in runs if _request_of(run.job) == request)
        return self._told(lambda decision: decision.mentions(request, epochs))

    def about_server(self, name: str) -> list[dict[str, object]]:
        """The latest, oldest first."""
        return self._told(lambda decision: decision.concerns(name))

    def latest(self) -> list[dict[str, object]]:
        """Oldest first."""
        return self._told(lambda _: True)

    def _told(self, wanted: Callable[[Decision], bool]) -> list[dict[str, object]]:
        found = list(islice((decision for decision in reversed(self._log) if wanted(decision)), MOST_SHOWN))
        return [decision.told() for decision in reversed(found)]


def job_told(job: Job) -> Mapping[str, object]:
    """A job of a request under way, for people."""
    attempt = job.attempt
    return {
        "job": job.spec.id,
        "state": job.state.value,
        "server": attempt.server.spec.name if attempt is not None else None,
        "steps": f"{attempt.step} of {attempt.steps}" if attempt is not None and attempt.steps else None,
        "waits_for": sorted(job.missing),
        "failures": job.failures,
        "losses": job.losses,
    }


def _request_of(job: str) -> str:
    return job.rpartition("/")[0]


def _server_of(item: object) -> ServerId:
    server = getattr(item, "server", ServerId(""))
    return server.id if isinstance(server, ServerSpec) else server


def _plain(item: object) -> dict[str, object]:
    """The fields of an event or action that fit into a line; deadlines are on a clock that nobody else reads."""
    shown = ((field.name, _short(getattr(item, field.name))) for field in fields(item))  # type: ignore[arg-type]
    return {name: value for name, value in shown if value not in (None, "", []) and name != "deadline"}


def _short(value: object) -> object:
    match value:
        case Epoch(counter=counter):
            return counter
        case RequestSpec(id=name) | ServerSpec(id=name) | Output(port=name):
            return name
        case Input(holder=holder):
            return holder
        case str() | bool() | int() | float():
            return value
        case frozenset():
            return sorted(value)
        case tuple():
            return [_short(part) for part in value]
        case _:
            return None

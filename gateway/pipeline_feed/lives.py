"""The lives of requests: every attempt at their jobs, from the moment it was sent to a server to its end. Pure.

Times are Unix seconds, as the caller says them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gateway.pipeline_feed.busy import handed_bytes
from gateway.pipeline_feed.news import MOST_TEXT
from gateway.pipeline_feed.rows import Row, Table
from scheduler import actions as act
from scheduler import events as ev
from scheduler.spec import RequestSpec
from wire.types import Epoch, JobId, RequestId, Role, ServerId, server_name

REMEMBERED = 100
"""Requests that are over."""
MOST_PIECES = 200
"""Attempts of one request that are kept; what comes after these is not drawn."""


@dataclass(slots=True)
class Piece:
    """One attempt at a job."""

    job: JobId
    role: Role
    server: ServerId
    sent: float
    handed_bytes: int
    """Of its inputs that lie on other servers."""
    fetched: float | None = None
    computing: list[list[float]] = field(default_factory=list)
    """Begin and end of each stretch on the device; the last has no end while it computes."""
    ended: float | None = None
    how: str = ""

    def told(self) -> Row:
        return {
            "job": self.job.rpartition("/")[2],
            "role": self.role.value,
            "server": server_name(self.server),
            "sent": round(self.sent, 3),
            "fetched": _rounded(self.fetched),
            "computing": [[round(at, 3) for at in stretch] for stretch in self.computing],
            "ended": _rounded(self.ended),
            "how": self.how,
            "handed_bytes": self.handed_bytes,
        }


@dataclass(slots=True)
class Life:
    request: RequestSpec
    arrived: float
    predicted: float | None = None
    """Seconds, foreseen at admission."""
    state: str = "waiting"
    """Then ``computing``, and at the end ``done``, ``failed``, ``rejected`` or ``cancelled``."""
    ended: float | None = None
    why: str = ""
    pieces: list[Piece] = field(default_factory=list)

    def told(self) -> Row:
        return {
            "model": self.request.model,
            "tenant": self.request.tenant,
            "arrived": round(self.arrived, 3),
            "pictures": sum(job.is_final for job in self.request.jobs),
            "state": self.state,
            "predicted": _rounded(self.predicted),
            "took": None if self.ended is None else round(self.ended - self.arrived, 3),
            "why": self.why,
        }


class Lives:
    """Of all requests under way, and the last ``REMEMBERED`` that are over."""

    def __init__(self) -> None:
        self._lives: dict[RequestId, Life] = {}
        self._over: deque[RequestId] = deque()
        self._pieces: dict[Epoch, tuple[Life, Piece]] = {}
        self._rows: dict[str, Row] = {}
        self._stale: set[RequestId] = set()
        self._events: dict[type, Callable[..., None]] = {
            ev.RequestArrived: self._arrived,
            ev.RequestCancelled: self._cancelled,
            ev.JobFetched: self._fetched,
            ev.JobStarted: self._started,
            ev.JobPaused: self._paused,
            ev.JobDone: self._done,
            ev.JobFailed: self._failed,
            ev.JobHandedOver: self._handed_over,
            ev.JobCancelled: self._given_up,
            ev.ServerLost: self._server_lost,
        }
        self._actions: dict[type, Callable[..., None]] = {
            act.Admit: self._admitted,
            act.Reject: self._rejected,
            act.Run: self._sent,
            act.Finish: self._finished,
            act.Fail: self._request_failed,
        }

    def wants(self, event: ev.Event) -> bool:
        """Whether the event itself is of interest; actions always are."""
        return type(event) in self._events

    def note(self, event: ev.Event, actions: Iterable[act.Action], at: float) -> None:
        hear = self._events.get(type(event))
        if hear is not None:
            hear(event, at)
        for action in actions:
            tell = self._actions.get(type(action))
            if tell is not None:
                tell(action, at)

    def forget(self) -> None:
        """Everything, since some of what happened was not noted."""
        self._stale |= self._lives.keys()
        self._lives.clear()
        self._over.clear()
        self._pieces.clear()

    def rows(self) -> Table:
        """By request id. A row that is the same object as before has not changed."""
        for request in self._stale:
            life = self._lives.get(request)
            if life is None:
                self._rows.pop(request, None)
            else:
                self._rows[request] = life.told()
        self._stale.clear()
        return self._rows

    def life(self, request: str) -> list[Row] | None:
        """Its attempts, in the order in which they were sent; None if nothing is known of it."""
        found = self._lives.get(RequestId(request))
        return None if found is None else [piece.told() for piece in found.pieces]

    # --- requests -----------------------------------------------------------------------------------------------------

    def _arrived(self, event: ev.RequestArrived, at: float) -> None:
        self._lives[event.request.id] = Life(event.request, at)
        self._stale.add(event.request.id)

    def _admitted(self, action: act.Admit, _at: float) -> None:
        if (life := self._lives.get(action.request)) is not None:
            life.predicted = action.predicted_seconds
            self._stale.add(action.request)

    def _rejected(self, action: act.Reject, at: float) -> None:
        self._end(action.request, "rejected", action.reason, at)

    def _finished(self, action: act.Finish, at: float) -> None:
        self._end(action.request, "done", "", at)

    def _request_failed(self, action: act.Fail, at: float) -> None:
        self._end(action.request, "failed", f"{action.code}: {action.message}", at)

    def _cancelled(self, event: ev.RequestCancelled, at: float) -> None:
        self._end(event.request, "cancelled", "the client is gone", at)

    def _end(self, request: RequestId, state: str, why: str, at: float) -> None:
        life = self._lives.get(request)
        if life is None or life.ended is not None:
            return
        life.state, life.why, life.ended = state, why[:MOST_TEXT], at
        self._stale.add(request)
        self._over.append(request)
        if len(self._over) > REMEMBERED:
            forgotten = self._over.popleft()
            self._lives.pop(forgotten, None)
            self._stale.add(forgotten)

    # --- attempts -----------------------------------------------------------------------------------------------------

    def _sent(self, action: act.Run, at: float) -> None:
        life = self._lives.get(RequestId(action.job.rpartition("/")[0]))
        if life is None:
            return
        piece = Piece(action.job, action.role, action.server, at, handed_bytes(action))
        self._pieces[action.epoch] = (life, piece)
        if len(life.pieces) < MOST_PIECES:
            life.pieces.append(piece)

    def _fetched(self, event: ev.JobFetched, at: float) -> None:
        if (found := self._pieces.get(event.epoch)) is not None:
            found[1].fetched = at

    def _started(self, event: ev.JobStarted, at: float) -> None:
        if (found := self._pieces.get(event.epoch)) is None:
            return
        life, piece = found
        piece.computing.append([at])
        if life.state == "waiting":
            life.state = "computing"
            self._stale.add(life.request.id)

    def _paused(self, event: ev.JobPaused, at: float) -> None:
        if (found := self._pieces.get(event.epoch)) is not None:
            self._stops(found[1], at)

    def _done(self, event: ev.JobDone, at: float) -> None:
        if (found := self._pieces.get(event.epoch)) is not None and not found[1].computing:
            end = at - event.timings.publish  # it was over before anybody heard that it had begun
            found[1].computing.append([max(found[1].sent, end - event.timings.compute), end])
        self._over_with(event.epoch, "done", at, event.timings.publish)

    def _failed(self, event: ev.JobFailed, at: float) -> None:
        self._over_with(event.epoch, f"failed: {event.code}: {event.message}", at)

    def _handed_over(self, event: ev.JobHandedOver, at: float) -> None:
        self._over_with(event.epoch, f"handed over after step {event.step}", at)

    def _given_up(self, event: ev.JobCancelled, at: float) -> None:
        self._over_with(event.epoch, "cancelled", at)

    def _server_lost(self, event: ev.ServerLost, at: float) -> None:
        for epoch in [epoch for epoch, (_, piece) in self._pieces.items() if piece.server == event.server]:
            self._over_with(epoch, f"server lost: {event.why}", at)

    def _over_with(self, epoch: Epoch, how: str, at: float, published: float = 0.0) -> None:
        """``published``: seconds between the last moment on the device and the report."""
        found = self._pieces.pop(epoch, None)
        if found is not None:
            piece = found[1]
            self._stops(piece, at - published)
            piece.ended, piece.how = at, how[:MOST_TEXT]

    def _stops(self, piece: Piece, at: float) -> None:
        if piece.computing and len(piece.computing[-1]) == 1:
            piece.computing[-1].append(max(at, piece.computing[-1][0]))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)

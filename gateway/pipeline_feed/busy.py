"""How busy each device was, and what was handed from server to server, in slices of a few seconds. Pure."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from gateway.pipeline_feed.rows import Row, Table
from scheduler import actions as act
from scheduler import events as ev
from wire.types import Epoch, Role, ServerId, server_name

SLICE_SECONDS = 5.0
SLICES = 60
"""That are kept: five minutes."""


Place = tuple[ServerId, Role]
"""A server, as far as it holds a role."""


@dataclass(frozen=True, slots=True)
class Handed:
    """Inputs that jobs read from other servers."""

    jobs: int = 0
    nbytes: int = 0


def handed_bytes(run: act.Run) -> int:
    """Of its inputs that lie on other servers."""
    return sum(each.nbytes for each in run.inputs if each.holder != run.server)


class Busy:
    """A device is busy while at least one attempt has it, however many share it."""

    def __init__(self, began: float) -> None:
        self._computing: dict[ServerId, set[Epoch]] = {}
        self._since: dict[ServerId, float] = {}
        self._seconds: defaultdict[ServerId, float] = defaultdict(float)
        """Of the slice that has not ended yet."""
        self._handed: defaultdict[Place, Handed] = defaultdict(Handed)
        self._slice_began = began
        self._slices: deque[tuple[str, Row]] = deque(maxlen=SLICES)
        self._recent: deque[Mapping[Place, Handed]] = deque(maxlen=round(60 / SLICE_SECONDS))
        self._count = 0
        self._events: dict[type, Callable[..., None]] = {
            ev.JobStarted: lambda event, at: self.begins(event.server, event.epoch, at),
            ev.JobPaused: self._ends,
            ev.JobDone: self._done,
            ev.JobFailed: self._ends,
            ev.JobHandedOver: self._ends,
            ev.JobCancelled: self._ends,
            ev.ServerLost: lambda event, at: self.forget(event.server, at),
        }

    def note(self, event: ev.Event, actions: Iterable[act.Action], at: float) -> None:
        """Called for every event, whether anybody reads or not: it must cost next to nothing."""
        hear = self._events.get(type(event))
        if hear is not None:
            hear(event, at)
        for action in actions:
            if type(action) is act.Run:
                self.handed((action.server, action.role), handed_bytes(action))

    def _ends(self, event: ev.JobPaused | ev.JobFailed | ev.JobHandedOver | ev.JobCancelled, at: float) -> None:
        self.ends(event.server, event.epoch, at)

    def _done(self, event: ev.JobDone, at: float) -> None:
        if event.epoch in self._computing.get(event.server, ()):
            self.ends(event.server, event.epoch, at - event.timings.publish)
        else:  # it was over before anybody heard that it had begun
            self._seconds[event.server] += event.timings.compute

    def begins(self, server: ServerId, epoch: Epoch, at: float) -> None:
        epochs = self._computing.setdefault(server, set())
        if not epochs:
            self._since[server] = at
        epochs.add(epoch)

    def ends(self, server: ServerId, epoch: Epoch, at: float) -> None:
        """Nothing happens where it had not begun."""
        epochs = self._computing.get(server)
        if epochs is None or epoch not in epochs:
            return
        epochs.remove(epoch)
        if not epochs:
            del self._computing[server]
            self._seconds[server] += max(0.0, at - self._since.pop(server))

    def handed(self, to: Place, nbytes: int) -> None:
        if nbytes:
            before = self._handed[to]
            self._handed[to] = Handed(before.jobs + 1, before.nbytes + nbytes)

    def forget(self, server: ServerId, at: float) -> None:
        """It is gone: nothing computes there."""
        for epoch in tuple(self._computing.get(server, ())):
            self.ends(server, epoch, at)

    def is_due(self, now: float) -> bool:
        """From below as well: a clock that was set back would keep the slice open until it has caught up."""
        return not self._slice_began <= now < self._slice_began + SLICE_SECONDS

    def cut(self, servers: Mapping[ServerId, str], now: float) -> None:
        """End the slice. ``servers`` are those present, with their names; the others' shares are dropped."""
        length = now - self._slice_began
        for server, since in self._since.items():
            self._seconds[server] += max(0.0, now - since)
            self._since[server] = now
        if length > 0:
            busy = {name: round(min(1.0, self._seconds[server] / length), 3) for server, name in servers.items()}
            self._slices.append((str(self._count), {"at": round(now, 1), "busy": busy}))
            self._recent.append(dict(self._handed))
            self._count += 1
        self._seconds.clear()
        self._handed.clear()
        self._slice_began = now

    def rows(self) -> Table:
        """By the slice's number."""
        return dict(self._slices)

    def latest(self, server: ServerId) -> float | None:
        """Its share in the latest whole slice."""
        if not self._slices:
            return None
        shares = self._slices[-1][1]["busy"]
        return shares.get(server_name(server)) if isinstance(shares, dict) else None

    def handed_lately(self) -> dict[Place, Handed]:
        """In the last minute, and the slice that has not ended."""
        total: defaultdict[Place, Handed] = defaultdict(Handed)
        for part in (*self._recent, self._handed):
            for to, each in part.items():
                total[to] = Handed(total[to].jobs + each.jobs, total[to].nbytes + each.nbytes)
        return total

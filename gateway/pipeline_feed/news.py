"""What happened to the fleet and to requests that got no picture, in words: one line each, the latest. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from gateway.pipeline_feed.rows import Row, Table
from scheduler import actions as act
from scheduler import events as ev
from wire.types import Role, ServerId, server_name

REMEMBERED = 60
MOST_TEXT = 500
"""Characters: what servers report may be long."""


class NewsLog:
    def __init__(self) -> None:
        self._lines: deque[tuple[str, Row]] = deque(maxlen=REMEMBERED)
        self._count = 0
        self._words: dict[type, Callable[..., tuple[str, ServerId | None, str]]] = {
            ev.ServerJoined: lambda each: ("joined", each.server.id, f"came with {_roles(each.server.roles)}"),
            ev.ServerLost: lambda each: ("lost", each.server, f"is gone: {each.why}"),
            ev.ServerLeaving: lambda each: ("leaving", each.server, "takes no new work, and leaves"),
            ev.ServerPinned: lambda each: ("order", each.server, _pinned(each)),
            ev.RolesOrdered: lambda each: ("order", each.server, f"was ordered to hold {_roles(each.roles)}"),
            ev.RolesReady: lambda each: ("roles", each.server, _ready(each)),
            ev.RolesFailed: lambda each: ("failed", each.server, f"keeps {_roles(each.roles)}: {each.why}"),
            act.AssignRoles: lambda each: ("roles", each.server, f"changes to {_roles(each.roles)}: {each.reason}"),
            act.SetAside: lambda each: ("aside", each.server, _aside(each)),
            act.HandOver: lambda each: ("handover", each.server, f"hands denoising over: {each.reason}"),
            act.Reject: lambda each: ("rejected", None, f"{each.request} was turned away: {each.reason}"),
            act.Fail: lambda each: ("failed", None, f"{each.request} failed: {each.code}: {each.message}"),
        }

    def note(self, event: ev.Event, actions: Iterable[act.Action], at: float) -> None:
        for each in (event, *actions):
            word = self._words.get(type(each))
            if word is not None:
                kind, server, text = word(each)
                name = None if server is None else server_name(server)
                line = {"at": round(at, 3), "kind": kind, "server": name, "text": text[:MOST_TEXT]}
                self._lines.append((str(self._count), line))
                self._count += 1

    def rows(self) -> Table:
        """By number, oldest first."""
        return dict(self._lines)


def _roles(roles: Iterable[Role]) -> str:
    held = set(roles)
    return ", ".join(role.value for role in Role if role in held) or "no role"


def _pinned(event: ev.ServerPinned) -> str:
    return "was pinned: plans leave its roles alone" if event.pinned else "is free again for plans to change"


def _ready(event: ev.RolesReady) -> str:
    source = "from host memory" if event.from_host else "from disk"
    return f"holds {_roles(event.roles)} now, loaded {source} in {event.load_seconds:.1f} s"


def _aside(action: act.SetAside) -> str:
    if not action.roles:
        return "gets work of all its roles again"
    return f"gets no work of {_roles(action.roles)}: {action.reason}"

"""Which servers go, and when those whose machine is taken away must stop taking work."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from scheduler.state import Server
from scheduler.view import View
from wire.types import ServerId


def first_to_go(candidates: Iterable[Server], going: Collection[ServerId], view: View, now: float) -> Server | None:
    """Of these, who has least to finish; the last holder of a role does not go. ``going``: they are as good as gone."""
    able = [server for server in candidates if not is_last(server, going, view)]
    return min(able, key=lambda server: (server.remaining(now), -server.joined_at, server.id), default=None)


def least_busy(candidates: Iterable[Server], now: float) -> Server | None:
    """The same where a model that nobody asks for may lose its last holders."""
    return min(candidates, key=lambda server: (server.remaining(now), -server.joined_at, server.id), default=None)


def is_last(server: Server, going: Collection[ServerId], view: View) -> bool:
    """Whether some role that it holds has no other holder that stays."""
    for role in server.serving:
        others = view.serving(server.spec.model, role)
        if not any(other is not server and name not in going for name, other in others.items()):
            return True
    return False


def must_stop(server: Server, lost_at: float, longest: float, interval: float, now: float) -> bool:
    """Whether what it has, and one more job of at most ``longest`` seconds given before the next look, would not be
    done when its machine is taken away.
    """
    return lost_at - now <= server.remaining(now) + longest + interval

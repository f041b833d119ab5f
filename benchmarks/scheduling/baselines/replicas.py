"""Monolithic replicas: a request runs on one server from its first stage to its last.

Every server becomes a model of its own, so that it has queues of its own; a request is given its server by renaming the
model it asks for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from heapq import heappop, heappush
from itertools import cycle
from typing import Protocol

from scheduler import events as ev
from scheduler.actions import Action, Fail, Finish, Reject
from scheduler.core import Scheduler
from scheduler.policy import Policies
from scheduler.spec import RequestSpec
from wire.types import ModelKey, RequestId


class Route(Protocol):
    """Which replica a request goes to."""

    def joined(self, replica: ModelKey) -> None: ...

    def take(self, request: RequestSpec, now: float) -> None: ...

    def give(self) -> tuple[RequestSpec, ModelKey] | None:
        """A request that can be bound now, and to which replica."""

    def over(self, replica: ModelKey) -> None:
        """One of its requests has ended."""


class RoundRobin:
    """In turn, on arrival."""

    def __init__(self) -> None:
        self._replicas: list[ModelKey] = []
        self._turns = cycle(self._replicas)
        self._waiting: list[RequestSpec] = []

    def joined(self, replica: ModelKey) -> None:
        self._replicas.append(replica)
        self._turns = cycle(self._replicas)

    def take(self, request: RequestSpec, now: float) -> None:  # noqa: ARG002
        self._waiting.append(request)

    def give(self) -> tuple[RequestSpec, ModelKey] | None:
        return (self._waiting.pop(0), next(self._turns)) if self._waiting and self._replicas else None

    def over(self, replica: ModelKey) -> None:
        pass


class ShortestQueue:
    """Where the fewest requests are under way, on arrival."""

    def __init__(self) -> None:
        self._load: Counter[ModelKey] = Counter()
        self._waiting: list[RequestSpec] = []

    def joined(self, replica: ModelKey) -> None:
        self._load[replica] = 0

    def take(self, request: RequestSpec, now: float) -> None:  # noqa: ARG002
        self._waiting.append(request)

    def give(self) -> tuple[RequestSpec, ModelKey] | None:
        if not (self._waiting and self._load):
            return None
        replica = min(self._load, key=self._load.__getitem__)
        self._load[replica] += 1
        return self._waiting.pop(0), replica

    def over(self, replica: ModelKey) -> None:
        self._load[replica] -= 1


class Central:
    """One queue for all: the request with the smallest key goes to the next replica that has nothing to do."""

    def __init__(self, key: Callable[[RequestSpec, float], float]):
        self._key = key
        self._idle: list[ModelKey] = []
        self._waiting: list[tuple[float, int, RequestSpec]] = []
        self._count = 0

    def joined(self, replica: ModelKey) -> None:
        self._idle.append(replica)

    def take(self, request: RequestSpec, now: float) -> None:
        self._count += 1
        heappush(self._waiting, (self._key(request, now), self._count, request))

    def give(self) -> tuple[RequestSpec, ModelKey] | None:
        if not (self._waiting and self._idle):
            return None
        return heappop(self._waiting)[2], self._idle.pop(0)

    def over(self, replica: ModelKey) -> None:
        self._idle.append(replica)


class Replicas(Scheduler):
    """The real core, with requests bound to servers by a ``Route``. Servers must hold every role and stay alive."""

    def __init__(self, policies: Policies, route: Route):
        super().__init__("replicas", policies)
        self._route = route
        self._bound: dict[RequestId, ModelKey] = {}

    def handle(self, event: ev.Event, now: float) -> list[Action]:
        match event:
            case ev.ServerJoined(server=server):
                own = ModelKey(f"{server.model}@{server.name}")
                self._route.joined(own)
                actions = super().handle(replace(event, server=replace(server, model=own)), now)
                return [*actions, *self._bind(now)]
            case ev.RequestArrived(request=request):
                self._route.take(request, now)
                return self._bind(now)
            case _:
                actions = super().handle(event, now)
                ended = [action.request for action in actions if isinstance(action, Finish | Fail | Reject)]
                for request_id in ended:
                    self._route.over(self._bound.pop(request_id))
                return [*actions, *self._bind(now)] if ended else actions

    def _bind(self, now: float) -> list[Action]:
        actions: list[Action] = []
        while (given := self._route.give()) is not None:
            request, replica = given
            self._bound[request.id] = replica
            actions += super().handle(ev.RequestArrived(replace(request, model=replica)), now)
        return actions

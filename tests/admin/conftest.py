"""The operator's desk around a real scheduler, which is fed events by hand, behind the real HTTP routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import httpx
import pytest

from gateway.api.app import create_app
from gateway.service.decisions import Decisions
from gateway.service.interfaces import Finished, ImageRequest
from gateway.service.operator import Judge, Levers, Operator
from gateway.settings import Settings
from scheduler import actions as act
from scheduler import events as ev
from scheduler.core import Scheduler
from scheduler.cost.work import Target, Work
from scheduler.elastic.build import Elastic, elastic
from scheduler.spec import JobSpec, RequestSpec, RoleCost, ServerSpec
from wire.params import ModelInfo
from wire.to_gateway import Heartbeat
from wire.to_stage import ToStage
from wire.types import REQUIRED, Epoch, JobId, ModelKey, RequestId, Role, ServerId

KEY = "operators-only-0123"


class NoService:
    """An image service without models."""

    def models(self) -> tuple[ModelInfo, ...]:
        return ()

    def ready(self) -> bool:
        return False

    def status(self) -> dict[str, object]:
        return {}

    async def generate(self, request: ImageRequest, listener: object = None) -> Finished:
        raise AssertionError(request)

    def place(self, request_id: str) -> None:
        """Nothing is under way."""


@dataclass
class Desk:
    chosen: Elastic = field(default_factory=elastic)
    scheduler: Scheduler = field(init=False)
    decisions: Decisions = field(default_factory=Decisions)
    sent: list[tuple[ServerId, ToStage]] = field(default_factory=list)
    now: float = 0.0
    operator: Operator = field(init=False)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler("g1", self.chosen.policies)
        levers = Levers(self._order, lambda server, message: self.sent.append((server, message)), self._vitals)
        self.operator = Operator(self.scheduler.view, self.chosen.roles, self.chosen.suspects, self.decisions, levers)

    async def _order(self, judge: Judge) -> None:
        event = judge()
        if event is not None:
            self.tell(event)

    def _vitals(self) -> dict[ServerId, Heartbeat]:
        return {
            server: Heartbeat(sequence=1, store_bytes=7, store_capacity=100) for server in self.scheduler.view.servers
        }

    def tell(self, event: ev.Event) -> list[act.Action]:
        self.now += 0.1
        actions = self.scheduler.handle(event, self.now)
        self.decisions.note(event, actions, 1e9 + self.now)
        return actions

    def join(
        self,
        name: str,
        *roles: Role,
        pinned: bool = False,
        capable: tuple[Role, ...] = REQUIRED,
        device: str = "",
    ) -> ServerId:
        spec = ServerSpec(
            id=ServerId(f"{name}/i1"),
            name=name,
            model=ModelKey("m@1"),
            device_class="cpu-1",
            roles=frozenset(roles),
            capable={role: RoleCost(10, 1, 0.5) for role in capable},
            memory_bytes=1000,
            pinned=pinned,
            target=Target.of("m", "cpu-1", "float32"),
            device=device,
        )
        self.tell(ev.ServerJoined(spec, dict.fromkeys(REQUIRED, 10)))
        return spec.id

    def ask(self, name: str = "req_1", deadline: float = 600.0) -> None:
        encoder = JobSpec(JobId(f"{name}/encoder"), Role.ENCODER, Work(Role.ENCODER))
        dit = JobSpec(JobId(f"{name}/dit.0"), Role.DIT, Work(Role.DIT, height=64, width=64, steps=4), (encoder.id,))
        decoder = JobSpec(JobId(f"{name}/decoder.0"), Role.DECODER, Work(Role.DECODER, height=64, width=64), (dit.id,))
        spec = RequestSpec(RequestId(name), ModelKey("m@1"), (encoder, dit, decoder), self.now + deadline)
        self.tell(ev.RequestArrived(spec))

    def switching(self, server: ServerId) -> Epoch:
        change = self.scheduler.view.servers[server].switching
        assert change is not None
        return change[0]


@pytest.fixture
def desk() -> Desk:
    return Desk()


Connect = Callable[..., httpx.AsyncClient]


@pytest.fixture
async def connect(desk: Desk) -> AsyncIterator[Connect]:
    opened = []

    def client(shown: str = KEY, **settings: object) -> httpx.AsyncClient:
        app = create_app(NoService(), Settings(**({"admin_key": KEY} | settings)), operator=desk.operator)
        headers = {"authorization": f"Bearer {shown}"} if shown else {}
        opened.append(httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://g", headers=headers))
        return opened[-1]

    yield client
    for client_ in opened:
        await client_.aclose()


@pytest.fixture
def admin(connect: Connect) -> httpx.AsyncClient:
    return connect()

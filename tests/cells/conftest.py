"""A scheduler with servers, without sockets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from gateway.cells.own import OwnCell
from gateway.service import translate
from scheduler import events as ev
from scheduler.core import Scheduler
from scheduler.cost.work import Work
from scheduler.policy import Policies
from scheduler.spec import JobSpec, RequestSpec
from wire.params import ModelInfo
from wire.to_gateway import Hello, RoleInfo
from wire.types import REQUIRED, JobId, ModelKey, RequestId, Role, ServerId
from wire.version import PROTOCOL

MODEL = ModelInfo(name="m", key="m@1", family="f", dtype="float32")


@dataclass
class Site:
    """A gateway's scheduler, and its cell."""

    scheduler: Scheduler = field(default_factory=lambda: Scheduler("g1", Policies()))
    movable: set[ServerId] = field(default_factory=set)
    now: float = 0.0
    under_way: int = 0

    def __post_init__(self) -> None:
        self.cell = OwnCell(
            "here",
            "g1",
            self.scheduler.view,
            moves=self.movable.__contains__,
            ready=lambda: True,
            under_way=lambda: self.under_way,
            clock=lambda: self.now,
        )

    def join(self, name: str, *roles: Role, device: str = "", moves: bool = True, model: ModelInfo = MODEL) -> ServerId:
        server = ServerId(f"{name}/1")
        hello = Hello(
            protocol=PROTOCOL,
            name=name,
            incarnation="1",
            model=model,
            device_class="c",
            memory_bytes=1 << 30,
            capable={role: RoleInfo() for role in REQUIRED},
            roles=roles or REQUIRED,
            data_endpoint="tcp://127.0.0.1:9",
            device=device,
            limits=dict.fromkeys(REQUIRED, 2),
        )
        self.tell(translate.joined(server, hello, "g1"))
        if moves:
            self.movable.add(server)
        return server

    def tell(self, event: ev.Event) -> None:
        self.scheduler.handle(event, self.now)

    def request(self, *roles: Role) -> None:
        """With a job of each role, one after the other."""
        ids = [JobId(f"r/{role}") for role in roles]
        needs = [(), *((each,) for each in ids)]
        jobs = [
            JobSpec(each, role, Work(role, 64, 64), before)
            for each, role, before in zip(ids, roles, needs, strict=False)
        ]
        self.under_way += 1
        self.tell(ev.RequestArrived(RequestSpec(RequestId("r"), ModelKey(MODEL.key), tuple(jobs), deadline=1e6)))


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def make_site() -> Callable[..., Site]:
    return Site

"""A scheduler and its autoscaler, with pools that obey at once: what is ordered comes when the test says so."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler import actions as do
from scheduler import events as ev
from scheduler.actions import Action
from scheduler.core import Scheduler
from scheduler.cost.work import Target, Work
from scheduler.elastic.build import elastic_policies
from scheduler.elastic.settings import ElasticSettings
from scheduler.scaling.pools import Pool, ScalingSettings
from scheduler.scaling.records import PoolOrder
from scheduler.scaling.scaler import Autoscaler
from scheduler.sim import suite
from scheduler.spec import JobSpec, RequestSpec, RoleCost, ServerSpec
from wire.types import REQUIRED, JobId, ModelKey, RequestId, Role, ServerId

PROFILE = suite.bundled_profile("flux.1-dev-l20")
MODEL = ModelKey(f"{PROFILE.model.name}@1")
TARGET = Target.of(PROFILE.model.name, PROFILE.device_class, PROFILE.precision)
SECONDS = 21.0
"""That a request takes, about."""


class Site:
    def __init__(self, *pools: Pool, settings: ScalingSettings | None = None, memory_bytes: int = 0) -> None:
        policies = elastic_policies(ElasticSettings(elastic_roles=False), [PROFILE])
        self.scheduler = Scheduler("g", policies)
        self.scaler = Autoscaler(pools, self.scheduler.view, settings)
        policies.coming.follow(self.scaler)
        self.now = 0.0
        self.memory_bytes = memory_bytes
        self.requests = 0

    def post(self, event: ev.Event) -> list[Action]:
        actions = self.scheduler.handle(event, self.now)
        self.scaler.note(event, self.now)
        return actions

    def join(self, name: str, pool: str = "gpus", roles: Iterable[Role] = REQUIRED, served_as: str = "") -> ServerId:
        capable = {role: RoleCost(part.weights_bytes, part.activation_bytes) for role, part in PROFILE.roles.items()}
        spec = ServerSpec(
            ServerId(f"{name}/1"),
            name,
            MODEL,
            PROFILE.device_class,
            frozenset(roles),
            capable,
            self.memory_bytes,
            target=TARGET,
            pool=pool,
            model_name=served_as,
        )
        self.post(ev.ServerJoined(spec, dict.fromkeys(REQUIRED, 100)))
        return spec.id

    def ask(self, deadline: float = 165.0) -> do.Admit | do.Reject:
        self.requests += 1
        name = f"r{self.requests}"
        encoder, dit, decoder = (JobId(f"{name}/{role}") for role in REQUIRED)
        size = {"height": 1024, "width": 1024}
        jobs = (
            JobSpec(encoder, Role.ENCODER, Work(Role.ENCODER, **size)),
            JobSpec(dit, Role.DIT, Work(Role.DIT, steps=25, **size), (encoder,)),
            JobSpec(decoder, Role.DECODER, Work(Role.DECODER, **size), (dit,)),
        )
        actions = self.post(ev.RequestArrived(RequestSpec(RequestId(name), MODEL, jobs, self.now + deadline)))
        return next(action for action in actions if isinstance(action, do.Admit | do.Reject))

    def end(self, number: int) -> None:
        """Whoever asked has gone."""
        self.post(ev.RequestCancelled(RequestId(f"r{number}")))

    def decide(self, seconds: float = 5.0) -> PoolOrder:
        """After so long; of the first pool."""
        return self.decide_all(seconds)[0]

    def decide_all(self, seconds: float = 5.0) -> tuple[PoolOrder, ...]:
        self.now += seconds
        self.post(ev.Tick())
        return self.scaler.decide(self.now)


def gpus(least: int = 0, most: int = 4, **more: object) -> Pool:
    return Pool("gpus", PROFILE.model.name, least, most, **more)  # type: ignore[arg-type]

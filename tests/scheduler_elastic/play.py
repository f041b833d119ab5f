"""The core with elastic policies, FLUX.1-dev on H100s, and requests of chosen sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from scheduler import events as ev
from scheduler.actions import Action
from scheduler.cost.profile import bundled
from scheduler.cost.work import Target, Work
from scheduler.elastic.build import elastic_policies
from scheduler.elastic.settings import ElasticSettings
from scheduler.spec import JobSpec, RequestSpec, RoleCost, ServerSpec, Timings
from tests.scheduler.game import ALL, MODEL, D, E, Game, V
from wire.types import REQUIRED, JobId, RequestId, Role, ServerId

H100 = next(profile for profile in bundled() if profile.model.name == "FLUX.1-dev" and "H100" in profile.device_class)
GB = 10**9


class Play(Game):
    """Roles stay as they are unless the settings say otherwise."""

    def __init__(self, settings: ElasticSettings | None = None):
        super().__init__(elastic_policies(settings or ElasticSettings(elastic_roles=False), [H100]))

    def serve(
        self,
        name: str,
        roles: Iterable[Role] = ALL,
        limit: int = 100,
        memory_gb: int = 80,
        together: int = 8,
        *,
        adapters: Iterable[str] = (),
        software: str = "",
    ) -> list[Action]:
        """``adapters`` concern the dit; with ``software`` it shares guided steps with others."""
        capable = {
            role: RoleCost(part.weights_bytes, part.activation_bytes, part.load_seconds, together)
            for role, part in H100.roles.items()
        }
        target = Target.of(H100.model.name, H100.device_class, H100.precision)
        spec = ServerSpec(
            ServerId(name),
            name,
            MODEL,
            "H100",
            frozenset(roles),
            capable,
            memory_gb * GB,
            target=target,
            adapters=dict.fromkeys(adapters, frozenset({D})),
            software=software,
            shares_guidance=bool(software),
        )
        return self.post(ev.ServerJoined(spec, dict.fromkeys(REQUIRED, limit)))

    def want(
        self,
        name: str,
        side: int = 1024,
        steps: int = 25,
        *,
        deadline: float = 1000.0,
        tenant: str = "",
        priority: int = 0,
        exact: bool = True,
        adapters: Iterable[str] = (),
        previews: int = 0,
        guided: bool = False,
    ) -> list[Action]:
        encoder = JobSpec(JobId(f"{name}/e"), E, Work(E))
        denoising = Work(D, height=side, width=side, steps=steps, cfg=guided)
        decoding = Work(V, height=side, width=side)
        shown = tuple(JobSpec(JobId(f"{name}/v0.preview.{k}"), V, decoding, optional=True) for k in range(previews))
        needs = (encoder.id,)
        dit = JobSpec(JobId(f"{name}/d0"), D, denoising, needs, adapters=frozenset(adapters), previews=shown)
        decoder = JobSpec(JobId(f"{name}/v0"), V, decoding, (dit.id,))
        spec = RequestSpec(
            RequestId(name), MODEL, (encoder, dit, decoder), self.now + deadline, tenant, priority, exact
        )
        return self.post(ev.RequestArrived(spec))

    def done_event(self, job: str) -> ev.JobDone:
        """It took as long as predicted."""
        attempt = self.scheduler.view.servers[self.where[job]].attempts[self.epochs[job]]
        return replace(super().done_event(job), timings=Timings(compute=attempt.predicted_seconds))

    def waiting_dits(self, *names: str) -> None:
        """Finish these requests' encoders; there is a server that holds nothing else."""
        for name in names:
            self.through(f"{name}/e")

    def serve_in_turn(self, count: int, seconds: float = 0.0) -> list[str]:
        """Jobs in the order in which the dit server takes them, each done ``seconds`` after the last."""
        order = []
        for _ in range(count):
            (job,) = self.jobs_on("dit")
            order.append(job.split("/")[0])
            self.at(self.now + seconds)
            self.through(job)
        return order

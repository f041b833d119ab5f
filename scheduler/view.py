"""What policies may see of the core: read only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

from scheduler.cost.model import CostModel
from scheduler.cost.work import Target
from scheduler.queue import StageQueue
from scheduler.reach import Reach
from scheduler.state import Job, Request, Server
from wire.types import REQUIRED, ROLES, STAGES, JobId, ModelKey, RequestId, Role, ServerId

SAMPLE = 64
"""Servers that stand for all: an estimate must not take the longer the more there are."""


Station = tuple[ModelKey, Role]
"""Where jobs wait and servers serve."""


@dataclass(slots=True)
class View:
    """Shared with the core, which keeps it current."""

    cost: CostModel
    servers: dict[ServerId, Server] = field(default_factory=dict)
    live: dict[RequestId, Request] = field(default_factory=dict)
    jobs: dict[JobId, Job] = field(default_factory=dict)
    queues: dict[Station, StageQueue] = field(default_factory=dict)
    stations: dict[Station, dict[ServerId, Server]] = field(default_factory=dict)
    """Servers that serve a role now."""
    targets: dict[ModelKey, Target] = field(default_factory=dict)
    """The cost model by which a model's jobs are compared with each other."""
    names: dict[ModelKey, str] = field(default_factory=dict)
    """What clients call a model that a server has introduced."""
    reach: Reach = field(default_factory=Reach)
    served: int = 0
    """Times that somebody came to serve other roles, or none."""
    _shared: dict[tuple[ModelKey, Role, Role], bool] = field(default_factory=dict)
    """Answers of ``shared``, until somebody serves other roles."""
    devices: dict[str, list[Server]] = field(default_factory=dict)
    """Servers by the device that they say they share, ``ServerSpec.device``."""

    def name_of(self, model: ModelKey) -> str:
        """What clients call it: its key without the digest, where no server has said otherwise."""
        return self.names.get(model) or model.rpartition("@")[0] or model

    @property
    def requests(self) -> int:
        return len(self.live)

    def waiting(self, model: ModelKey, role: Role) -> int:
        queue = self.queues.get((model, role))
        return len(queue) if queue is not None else 0

    def serving(self, model: ModelKey, role: Role) -> Mapping[ServerId, Server]:
        return self.stations.get((model, role), {})

    def stages(self, model: ModelKey) -> list[Role]:
        """That the model has: an optional one where some server could take it, or work waits for it."""
        able = {role for server in self.servers.values() if server.spec.model == model for role in server.spec.capable}
        return [role for role in Role if role in REQUIRED or role in able or self.waiting(model, role)]

    def shared(self, model: ModelKey, role: Role, other: Role) -> bool:
        """Whether some server serves both roles."""
        known = self._shared.get((model, role, other))
        if known is None:
            known = not self.serving(model, role).keys().isdisjoint(self.serving(model, other))
            self._shared[(model, role, other)] = known
        return known

    def serve(self, server: Server, offered: frozenset[Role]) -> None:
        """It gets jobs of ``offered`` roles, as far as they are not set aside. Only the core calls this."""
        roles, model = offered - server.aside, server.spec.model
        self.served += 1
        self._shared.clear()
        for role in server.serving - roles:
            del self.stations[(model, role)][server.id]
        for role in roles - server.serving:
            self.stations.setdefault((model, role), {})[server.id] = server
        server.offered, server.serving = offered, roles

    def settle(self, server: Server) -> None:
        """It is here. Only the core calls this."""
        self.servers[server.id] = server
        if server.spec.device:
            sharers = self.devices.setdefault(server.spec.device, [])
            sharers.append(server)
            server.sharers = sharers

    def remove(self, server: Server) -> None:
        """It is gone. Only the core calls this."""
        del self.servers[server.id]
        if server.sharers:
            server.sharers.remove(server)
            if not server.sharers:
                del self.devices[server.spec.device]
            server.sharers = []

    def seconds(self, job: Job, server: Server) -> float:
        """Predicted for this job on this server."""
        return self.cost.seconds(job.spec.work, server.spec.target, server.spec.name)

    def marginal(self, job: Job, server: Server) -> float:
        """What one more job like this costs there where they compute together, in jobs."""
        return self.cost.batch_marginal(job.spec.work, server.spec.target)

    def reference_seconds(self, job: Job) -> float:
        """Predicted for this job on the model's reference class; 0 while no server of the model was ever seen."""
        if job.priced_at != self.cost.version:
            target = self.targets.get(job.request.spec.model)
            if target is None:
                return 0.0
            job.price, job.priced_at = self.cost.seconds(job.spec.work, target), self.cost.version
        return job.price

    def naive_seconds(self, request: Request, now: float) -> float:
        """Predicted time to the last picture as if queues were served evenly: backlog over holders, plus own work that
        is left.
        """
        model = request.spec.model
        left = [job for job in request.jobs.values() if not job.taken and job.holder is None]
        total = 0.0
        for role in ROLES:
            own = sum(self.reference_seconds(job) for job in left if job.spec.role is role)
            if STAGES[role].is_optional and not own:
                continue
            holders = self.serving(model, role)
            some = [server.remaining(now) for server in islice(holders.values(), SAMPLE)]
            busy = sum(some) / max(1, len(some))
            total += own + busy + self.waiting(model, role) * own / max(1, len(holders))
        return total

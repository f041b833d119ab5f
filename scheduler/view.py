"""What policies may see of the core: read only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

from scheduler.cost.model import CostModel
from scheduler.cost.work import Target
from scheduler.queue import StageQueue
from scheduler.reach import Reach
from scheduler.state import Job, Request, Server
from wire.types import JobId, ModelKey, RequestId, Role, ServerId

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
    reach: Reach = field(default_factory=Reach)

    @property
    def requests(self) -> int:
        return len(self.live)

    def waiting(self, model: ModelKey, role: Role) -> int:
        queue = self.queues.get((model, role))
        return len(queue) if queue is not None else 0

    def serving(self, model: ModelKey, role: Role) -> Mapping[ServerId, Server]:
        return self.stations.get((model, role), {})

    def serve(self, server: Server, offered: frozenset[Role]) -> None:
        """It gets jobs of ``offered`` roles, as far as they are not set aside. Only the core calls this."""
        roles, model = offered - server.aside, server.spec.model
        for role in server.serving - roles:
            del self.stations[(model, role)][server.id]
        for role in roles - server.serving:
            self.stations.setdefault((model, role), {})[server.id] = server
        server.offered, server.serving = offered, roles

    def seconds(self, job: Job, server: Server) -> float:
        """Predicted for this job on this server."""
        return self.cost.seconds(job.spec.work, server.spec.target, server.spec.name)

    def batch_seconds(self, job: Job, server: Server, members: int) -> float:
        """Predicted for a batch of ``members`` jobs like this one on this server."""
        if members == 1:
            return self.seconds(job, server)
        return self.cost.seconds(replace(job.spec.work, batch=members), server.spec.target, server.spec.name)

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
        for role in Role:
            own = sum(self.reference_seconds(job) for job in left if job.spec.role is role)
            holders = self.serving(model, role)
            some = [server.remaining(now) for server in islice(holders.values(), SAMPLE)]
            busy = sum(some) / max(1, len(some))
            total += own + busy + self.waiting(model, role) * own / max(1, len(holders))
        return total

"""One look at the pipeline, as tables: servers, stages, requests, shares of busy time, news, verdicts about roles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gateway.pipeline_feed.busy import Busy
from gateway.pipeline_feed.lives import Lives
from gateway.pipeline_feed.news import NewsLog
from gateway.pipeline_feed.rows import Row, Table, Tables
from scheduler.transitions import COMMITTED, JobState
from scheduler.view import View
from wire.types import ModelKey, Role, ServerId


@dataclass(frozen=True, slots=True)
class Sources:
    """What the operator's desk tells of servers and plans."""

    servers: Callable[[], Sequence[Mapping[str, object]]]
    plan: Callable[[], Mapping[str, object]]


@dataclass(slots=True)
class Snapshots:
    view: View
    sources: Sources
    lives: Lives
    busy: Busy
    news: NewsLog
    _verdicts: Table | None = None

    def take(self) -> Tables:
        return {
            "servers": {str(row["id"]): self._server(row) for row in self.sources.servers()},
            "stages": self._stages(),
            "requests": self.lives.rows(),
            "slices": self.busy.rows(),
            "news": self.news.rows(),
            "plans": self._plans(),
        }

    def is_stale(self) -> None:
        """A slice of time has ended: plans are looked at again."""
        self._verdicts = None

    def _server(self, row: Row) -> Row:
        busy = self.busy.latest(ServerId(str(row["id"])))
        return {name: value for name, value in row.items() if name != "id"} | {"busy": busy}

    def _stages(self) -> Table:
        """By model and role."""
        models = {server.spec.model for server in self.view.servers.values()} | {key for key, _ in self.view.queues}
        at_work: Counter[tuple[ModelKey, Role, bool]] = Counter()
        for server in self.view.servers.values():
            for attempt in server.attempts.values():
                job = attempt.job
                if job.state in COMMITTED:
                    computes = job.state is JobState.RUNNING
                    at_work[job.request.spec.model, job.spec.role, computes] += 1
        handed = self._handed()
        return {
            f"{model} {role}": {
                "model": model,
                "role": role.value,
                "waiting": self.view.waiting(model, role),
                "serving": len(self.view.serving(model, role)),
                "computing": at_work[model, role, True],
                "committed": at_work[model, role, False],
                "handed_jobs": handed[model, role, "jobs"],
                "handed_bytes": handed[model, role, "bytes"],
            }
            for model in sorted(models)
            for role in self.view.stages(model)
        }

    def _handed(self) -> Counter[tuple[ModelKey, Role, str]]:
        """To the servers that are here."""
        handed: Counter[tuple[ModelKey, Role, str]] = Counter()
        for (server, role), each in self.busy.handed_lately().items():
            present = self.view.servers.get(server)
            if present is not None:
                handed[present.spec.model, role, "jobs"] += each.jobs
                handed[present.spec.model, role, "bytes"] += each.nbytes
        return handed

    def _plans(self) -> Table:
        """By model. Demand changes with every event: it is looked at once in a slice."""
        if self._verdicts is None:
            told = self.sources.plan()
            models = told.get("models")
            self._verdicts = dict(models) if isinstance(models, dict) else {"": {"verdict": told.get("verdict", "")}}
        return self._verdicts

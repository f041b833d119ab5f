"""Jobs of one engine at once: their first calls meet, so that they compute together from the first on."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from statistics import median
from threading import Barrier
from time import perf_counter

from stage_server.engine.base import Engine, NamedValues, Outputs, StageJob, Unwatched
from wire.types import Role


class Stopwatch(Unwatched):
    """Of a timed job: a tick at the end of every step. With ``meeting``, one before at its first call, which waits for
    the others'."""

    def __init__(self, meeting: Barrier | None = None) -> None:
        self.ticks: list[float] = []
        self._meeting = meeting

    def check(self) -> None:
        if self._meeting is not None and not self.ticks:
            self._meeting.wait()
            self.ticks.append(perf_counter())

    def step_done(self, step: int, steps: int) -> None:  # noqa: ARG002
        self.ticks.append(perf_counter())


def run_together(engine: Engine, jobs: Sequence[tuple[StageJob, NamedValues]]) -> tuple[list[Outputs], list[Stopwatch]]:
    """Outputs and stopwatches, whose last tick is the job's end. Raises ``EngineError``."""
    meeting = Barrier(len(jobs))
    watches = [Stopwatch(meeting) for _ in jobs]

    def run(job: StageJob, inputs: NamedValues, watch: Stopwatch) -> Outputs:
        try:
            outputs = engine.run(job, inputs, watch)
        except BaseException:
            meeting.abort()  # the others shall not wait for it
            raise
        watch.ticks.append(perf_counter())
        return outputs

    with ThreadPoolExecutor(len(jobs)) as threads:
        running = [threads.submit(run, job, inputs, watch) for (job, inputs), watch in zip(jobs, watches, strict=True)]
        return [each.result() for each in running], watches


def seconds_together(role: Role, watches: Sequence[Stopwatch]) -> float:
    """Of a step, or from the first call to the end of the last job.

    The first step does not count: whether jobs can be joined is found out in it.
    """
    if role is Role.DIT:
        return median(after - before for before, after in pairwise(watches[0].ticks[2:-1]))
    return max(watch.ticks[-1] for watch in watches) - min(watch.ticks[0] for watch in watches)

"""An ``ImageService`` in front of another that measures what callers get of it: how requests end, what they took."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from gateway.metrics.instruments import Instruments, exemplar
from gateway.service.interfaces import Finished, ImageRequest, ImageService, Listener, unheard
from gateway.service.wrapped import Wrapped

PROVIDER = "disagfusion"
OPERATION = "generate_content"
COMPLETED, CANCELLED = "completed", "cancelled"


class Measured(Wrapped):
    def __init__(
        self, service: ImageService, instruments: Instruments, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        super().__init__(service)
        self._to = instruments
        self._clock = clock

    async def generate(self, request: ImageRequest, listener: Listener = unheard) -> Finished:
        """Raises as the service does."""
        began = self._clock()
        under_way = self._to.under_way(request.model)
        under_way.inc()
        outcome, model = CANCELLED, request.model  # a served one's name: the API has resolved it
        try:
            finished = await self._service.generate(request, listener)
        except Exception as error:
            outcome = outcome_of(type(error))
            raise
        else:
            outcome = COMPLETED
            self._finished(model, finished, self._clock() - began)
            return finished
        finally:
            under_way.dec()
            self._to.requests(model, outcome).inc()
            failure = "" if outcome == COMPLETED else outcome
            self._to.generation_seconds(OPERATION, PROVIDER, model, failure).observe(self._clock() - began, exemplar())

    def _finished(self, model: str, finished: Finished, seconds: float) -> None:
        self._to.pictures(model).inc(len(finished.images))
        if finished.predicted_seconds > 0:
            self._to.prediction(model).observe(seconds / finished.predicted_seconds, exemplar())
        of_phase = self._to.stage_seconds
        for stage in finished.stages:
            of_phase(model, stage.role, "queue").observe(stage.queue_seconds)
            of_phase(model, stage.role, "fetch").observe(stage.fetch_seconds)
            of_phase(model, stage.role, "compute").observe(stage.compute_seconds)
            of_phase(model, stage.role, "publish").observe(stage.publish_seconds)


def outcome_of(error: type[Exception]) -> str:
    """``DeadlineExceeded`` → ``deadline_exceeded``: as many as there are classes."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", error.__name__).lower()

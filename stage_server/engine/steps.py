"""The denoising steps of one job, seen at its diffusion scheduler, which every loop asks for the next latents.

The steps themselves stay as they are, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from types import SimpleNamespace
from typing import Any, Protocol

import torch

from stage_server.engine.base import HandOver, NamedValues, Unfinished
from stage_server.engine.estimate import Estimator
from stage_server.engine.migration import Beginning, Resumption, remembered
from stage_server.engine.port import JobPort
from stage_server.engine.staging import Staging
from wire.previews import preview_steps

Show = Callable[[int, int, int, torch.Tensor], None]
"""Index of a preview, step, steps, and what the final latents are expected to be."""


class Loop(Protocol):
    """The loop whose steps these are, asked once it runs."""

    def steps(self) -> int:
        """Their number."""

    def generator(self) -> torch.Generator | None:
        """From which it draws, if it does."""


class Steps:
    """Counts the steps of a view's scheduler, tells the port of each, and shows what was asked for."""

    def __init__(self, scheduler: Any, port: JobPort, staging: Staging, loop: Loop, guider: Any = None) -> None:
        """``guider``: where the loop has one, which may remember steps."""
        self.done = 0
        self._guider = guider
        self._port = port
        self._staging = staging
        self._fence = staging.step_fence()
        self._loop = loop
        self._beginning: Beginning | None = None
        self._resumption: Resumption | None = None
        self._step = scheduler.step
        self._estimator: Estimator | None = None
        self._previews = 0
        self._show: Show | None = None
        self._scheduler = scheduler

        @wraps(scheduler.step)  # blocks look at its signature to see what it takes
        def watched(model_output: Any, timestep: Any, sample: Any, *args: Any, **options: Any) -> Any:
            return self._taken(model_output, timestep, sample, *args, **options)

        scheduler.step = watched

    def show(self, previews: int, show: Show) -> None:
        """``show`` so many estimates of the final latents on the way, where they are known."""
        self._previews, self._show = previews, show
        self._estimator = Estimator(self._scheduler)

    def resume(self, values: NamedValues, called: Iterable[Any]) -> None:
        """Go on from what another engine left. ``called``: the modules that steps call. Raises ``EngineError``."""
        self._resumption = Resumption.of(values, self._staging.to_device)
        self._port.passed_over = frozenset(called)

    def close(self) -> None:
        """The scheduler is as it was, and holds nothing of the job any more."""
        self._scheduler.__dict__.pop("step", None)

    def _taken(self, model_output: Any, timestep: Any, sample: Any, *args: Any, **options: Any) -> Any:
        beginning = self._beginning = self._beginning or Beginning.of(self._scheduler)
        if self._resumption is not None and self.done < self._resumption.step:
            return self._passed(self._resumption, sample, as_dict=options.get("return_dict", True))
        if self._estimator is None:
            result = self._step(model_output, timestep, sample, *args, **options)
        else:
            as_dict = options.pop("return_dict", True)
            named = self._step(model_output, timestep, sample, *args, return_dict=True, **options)
            self._estimator.saw(model_output, sample, named)
            result = named if as_dict else named.to_tuple()
        self.done += 1
        self._fence.passed()
        steps = max(self.done, self._loop.steps())  # the first chunk of a video may have more than the others
        self._preview(steps)
        try:
            self._port.step_done(self.done, steps)
        except HandOver:
            left = beginning.taken(self.done, result[0], self._scheduler, self._loop.generator(), self._staging.to_host)
            raise Unfinished({**left, **remembered(self._guider, self._staging.to_host)}) from None
        return result

    def _passed(self, resumption: Resumption, sample: torch.Tensor, *, as_dict: bool) -> Any:
        """A step that was done elsewhere."""
        self.done += 1
        if self.done == resumption.step:
            resumption.put_into(self._scheduler, self._loop.generator(), self._guider)
            self._port.passed_over = frozenset()
            sample = resumption.latents
        return SimpleNamespace(prev_sample=sample) if as_dict else (sample,)

    def _preview(self, steps: int) -> None:
        wanted = preview_steps(steps, self._previews)
        if self.done in wanted and self._estimator is not None and self._show is not None:
            latents = self._estimator.latents()
            if latents is not None:
                self._show(wanted.index(self.done), self.done, steps, latents)

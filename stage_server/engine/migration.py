"""Denoising that goes on on another engine, to the bit: what is taken along, and how it is put into place there.

The loop of the other engine runs from its beginning, with its own timesteps and its own preparations. Through the first
steps it is led without computing anything: the denoiser gives blanks, the diffusion scheduler the latents that it was
given. After the last of them, latents, scheduler and generator become what they were on the engine that stopped there.
So nothing of a family has to be known, beyond that its loop asks ``scheduler.step`` once per step for the next latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from stage_server.engine.base import STEP, EngineError, NamedValues
from stage_server.engine.tensors import ToDevice, ToHost, from_wire, to_wire

LATENTS, SCHEDULER, GENERATOR, GUIDER = "latents", "scheduler", "generator", "guider"
"""Names in the bundle."""

_ALWAYS = frozenset({"step", "_internal_dict"})
"""Attributes of a scheduler that are no state of a job: what watches it, and its configuration."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """A scheduler as it was before the first step of its loop."""

    state: Mapping[str, Any]

    @classmethod
    def of(cls, scheduler: Any) -> Beginning:
        return cls({name: _kept(value) for name, value in vars(scheduler).items() if name not in _ALWAYS})

    def taken(
        self, step: int, latents: torch.Tensor, scheduler: Any, generator: torch.Generator | None, to_host: ToHost
    ) -> NamedValues:
        """What another engine needs to go on after ``step``. Raises ``UnsupportedValue``."""
        now = Beginning.of(scheduler).state
        changed = {name: value for name, value in now.items() if not _same(value, self.state.get(name, _MISSING))}
        values = {STEP: step, LATENTS: latents, SCHEDULER: changed, GENERATOR: generator}
        return {name: to_wire(name, value, to_host) for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Resumption:
    """What ``Beginning.taken`` has left, on this engine's device."""

    step: int
    latents: torch.Tensor
    scheduler: Mapping[str, Any]
    generator: torch.Tensor | None
    guider: torch.Tensor | None = None

    @classmethod
    def of(cls, values: NamedValues, to_device: ToDevice) -> Resumption:
        """Raises ``EngineError`` where they are not what they should be."""
        step, scheduler, generator = values.get(STEP), values.get(SCHEDULER), values.get(GENERATOR)
        latents = from_wire(values.get(LATENTS), to_device)
        if not isinstance(step, int) or step < 1 or not isinstance(latents, torch.Tensor):
            raise EngineError(f"what was handed over has the step {step!r} and {type(latents).__name__} as latents")
        if not isinstance(scheduler, dict):
            raise EngineError("what was handed over lacks the state of the diffusion scheduler")
        state = None if generator is None else from_wire(generator, lambda tensor: tensor)
        return cls(step, latents, from_wire(scheduler, to_device), state, from_wire(values.get(GUIDER), to_device))

    def put_into(self, scheduler: Any, generator: torch.Generator | None, guider: Any = None) -> None:
        for name, value in self.scheduler.items():
            vars(scheduler)[name] = _like(vars(scheduler).get(name), value)
        if self.generator is not None and generator is not None:
            generator.set_state(self.generator.clone())
        momentum = getattr(guider, "momentum_buffer", None)
        if momentum is not None:  # what it has gathered of the steps that were passed over is nothing
            momentum.running_average = 0 if self.guider is None else self.guider


def remembered(guider: Any, to_host: ToHost) -> NamedValues:
    """What a guider keeps from one step to the next: adaptive projected guidance has momentum."""
    average = getattr(getattr(guider, "momentum_buffer", None), "running_average", None)
    return {GUIDER: to_wire(GUIDER, average, to_host)} if isinstance(average, torch.Tensor) else {}


_MISSING = object()


def _kept(value: Any) -> Any:
    """Lists are changed in place; tensors are replaced."""
    return list(value) if isinstance(value, list) else value


def _same(value: Any, before: Any) -> bool:
    if isinstance(value, list) and isinstance(before, list):
        return len(value) == len(before) and all(map(_same, value, before))
    plain = isinstance(value, bool | int | float | str)
    return value is before or (plain and type(value) is type(before) and bool(value == before))


def _like(former: Any, value: Any) -> Any:
    """Some schedulers keep some tensors on the host."""
    return value.to(former.device) if isinstance(former, torch.Tensor) and isinstance(value, torch.Tensor) else value

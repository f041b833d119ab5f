"""What all trainings share: steps within a budget, the learning rate, the update, the averaged weights, the log."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from examples.train_tiny_shapes.plan import Budget

LARGEST_GRADIENT_NORM = 1.0
REPORT_STEPS = 100


def mixed_precision() -> AbstractContextManager[None]:
    """bfloat16 where the processor multiplies it; elsewhere it would be emulated, and float32 is faster."""
    able = torch.cpu.get_capabilities()
    fast = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast)


@dataclass(frozen=True, slots=True)
class Step:
    index: int
    elapsed_seconds: float
    progress: float
    """0 at the start, below 1."""

    def learning_rate(self, peak: float, *, warmup_steps: int, floor: float) -> float:
        """Linear warm-up, then a cosine down to ``floor`` (a share of ``peak``) at the budget's end."""
        warmup = min(1.0, (self.index + 1) / warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress))
        return peak * warmup * (cosine * (1 - floor) + floor)


def steps(budget: Budget) -> Iterator[Step]:
    started = time.monotonic()
    for index in itertools.count():
        elapsed = time.monotonic() - started
        progress = max(elapsed / budget.seconds, index / budget.steps if budget.steps else 0.0)
        if progress >= 1:
            return
        yield Step(index, elapsed, progress)


def update(optimisers: Sequence[torch.optim.Optimizer], loss: Tensor, learning_rate: float) -> None:
    """One step on ``loss``, gradients clipped over the parameters of all ``optimisers``."""
    parameters: list[Parameter] = []
    for optimiser in optimisers:
        optimiser.zero_grad()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate
            parameters += group["params"]
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT_NORM)
    for optimiser in optimisers:
        optimiser.step()


class WeightAverage:
    """An exponential moving average of weights: the noise of single steps stays out of the pictures."""

    def __init__(self, parameters: Iterable[Parameter], decay: float) -> None:
        self._parameters, self._decay = list(parameters), decay
        self._average = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, index: int) -> None:
        """Take in the weights after step ``index``; the decay grows, so that the first weights are soon forgotten."""
        decay = min(self._decay, (1 + index) / (10 + index))
        torch._foreach_lerp_(self._average, [parameter.detach() for parameter in self._parameters], 1 - decay)

    @torch.no_grad()
    def install(self) -> None:
        """Put the averages in the place of the weights."""
        for parameter, average in zip(self._parameters, self._average, strict=True):
            parameter.copy_(average)


class Log:
    """Prints a smoothed loss now and then."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._smoothed: float | None = None

    def add(self, step: Step, loss: float) -> None:
        self._smoothed = loss if self._smoothed is None else 0.98 * self._smoothed + 0.02 * loss
        if (step.index + 1) % REPORT_STEPS == 0:
            print(f"{self._name}: step {step.index + 1}, {step.elapsed_seconds:.0f} s, loss {self._smoothed:.4f}")

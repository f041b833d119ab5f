"""What clients ask for, and when: kinds of requests, mixes of them, phases, arrival processes.

Arrivals depend on the seed alone, never on how they were served, so that policies can be compared pairwise; the one
exception is ``Phase.backlog``, which keeps requests waiting whatever happens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf, pi, sin
from random import Random

from scheduler.cost.work import Work
from scheduler.spec import JobSpec, RequestSpec
from wire.types import JobId, ModelKey, RequestId, Role

SHARED = (Role.ENHANCER, Role.ENCODER)
"""Stages of which a request has one job, whatever number of images it has."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests of one sort."""

    name: str
    """Its size class in tables."""
    height: int = 1024
    width: int = 1024
    steps: int = 25
    images: int = 1
    cfg: bool = False
    text_tokens: int = 0
    """0: the model's usual length."""
    image_pixels: int = 0
    """Of uploaded pictures."""
    tenant: str = ""
    priority: int = 0
    exact: bool = False
    previews: int = 0
    """Intermediate pictures asked for, of each image."""
    deadline: float = 600.0
    """Seconds after arrival."""
    patience: float = inf
    """Seconds after which the client hangs up."""
    model: str = ""
    """Of several; empty: that of the scenario's first server."""
    upscaled: bool = False
    """Each picture goes through the upscaler."""
    step_cache: str = ""
    """Level at which its steps reuse what earlier ones computed, one of the profile's; empty: all are computed."""
    enhanced: bool = False
    """The prompt goes through the enhancer."""

    def works(self) -> tuple[Work, ...]:
        """Of its encoder job and of each of its dit and decoder jobs; of enhancer and upscaler jobs if it has any."""
        return _works(self)

    def request(self, name: str, model: ModelKey, arrived: float, *, masks: bool = False) -> RequestSpec:
        """``masks``: decoder jobs read an output of the encoder, too."""
        works = {work.role: work for work in self.works()}
        denoising, decoding, upscaling = works[Role.DIT], works[Role.DECODER], works.get(Role.UPSCALER)
        enhancing = works.get(Role.ENHANCER)
        jobs = [] if enhancing is None else [JobSpec(JobId(f"{name}/enhancer"), Role.ENHANCER, enhancing)]
        enhanced = tuple(job.id for job in jobs)
        encoder = JobSpec(JobId(f"{name}/encoder"), Role.ENCODER, works[Role.ENCODER], enhanced)
        shared = (encoder.id,) if masks else ()
        jobs.append(encoder)
        for i in range(self.images):
            previews = tuple(
                JobSpec(JobId(f"{name}/decoder.{i}.preview.{k}"), Role.DECODER, decoding, shared, optional=True)
                for k in range(self.previews)
            )
            dit = JobSpec(JobId(f"{name}/dit.{i}"), Role.DIT, denoising, (encoder.id,), previews=previews)
            needs, is_passed_on = (*shared, dit.id), upscaling is not None
            decoder = JobSpec(JobId(f"{name}/decoder.{i}"), Role.DECODER, decoding, needs, is_passed_on=is_passed_on)
            jobs += [dit, decoder]
            if upscaling is not None:
                jobs.append(JobSpec(JobId(f"{name}/upscaler.{i}"), Role.UPSCALER, upscaling, (decoder.id,)))
        return RequestSpec(
            RequestId(name),
            model,
            tuple(jobs),
            arrived + self.deadline,
            tenant=self.tenant,
            priority=self.priority,
            exact=self.exact,
        )


def size_class(of: Kind | Work) -> str:
    """Requests of one size are compared with each other."""
    return f"{of.width}x{of.height}/{of.steps}"


@lru_cache(maxsize=1024)
def _works(kind: Kind) -> tuple[Work, ...]:
    """Kept, so that equal work is the same object: simulations compare it all the time."""
    height, width = kind.height, kind.width
    works: tuple[Work, ...] = (
        Work(Role.ENCODER, height=height, width=width, text_tokens=kind.text_tokens, image_pixels=kind.image_pixels),
        Work(Role.DIT, height=height, width=width, steps=kind.steps, cfg=kind.cfg, step_cache=kind.step_cache),
        Work(Role.DECODER, height=height, width=width),
    )
    if kind.enhanced:
        works = (Work(Role.ENHANCER, text_tokens=kind.text_tokens), *works)
    return (*works, Work(Role.UPSCALER, height=height, width=width)) if kind.upscaled else works


Mix = tuple[tuple[float, Kind], ...]
"""Weight → kind; weights need not add up to 1."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Seconds with one mix and one arrival process."""

    seconds: float
    mix: Mix
    rate: float = 0.0
    """Mean requests per second."""
    cv: float = 1.0
    """Coefficient of variation of the gaps (Gamma): 1 is Poisson, 0 is clockwork, 2 to 4 are bursts."""
    swing: float = 0.0
    """0 to 1: the rate goes up and down by this share, along a sine of ``period``."""
    period: float = 0.0
    backlog: int = 0
    """Instead of a rate: so many requests are always under way."""

    def __post_init__(self) -> None:
        if not self.mix or min(weight for weight, _ in self.mix) < 0 or not sum(weight for weight, _ in self.mix):
            raise ValueError("a phase needs a mix of kinds with weights of 0 or more, not all of them 0")
        if self.seconds <= 0 or min(self.rate, self.cv, self.backlog) < 0:
            raise ValueError("a phase lasts more than 0 s; rate, cv and backlog are 0 or more")
        if not 0 <= self.swing <= 1 or (self.swing and self.period <= 0):
            raise ValueError("a swing is from 0 to 1 and needs a period above 0 s")

    def kind(self, rng: Random) -> Kind:
        return rng.choices([kind for _, kind in self.mix], [weight for weight, _ in self.mix])[0]

    def mean_works(self, model: str = "") -> list[tuple[float, Work]]:
        """(mean number per request, work) of every job that the mix may ask for; of several models, of this one."""
        total = sum(weight for weight, _ in self.mix)
        return [
            (weight / total * (1 if work.role in SHARED else kind.images), work)
            for weight, kind in self.mix
            if not kind.model or not model or kind.model == model
            for work in kind.works()
        ]

    def arrivals(self, rng: Random) -> Iterator[float]:
        """Seconds since the phase began. With a swing, arrivals of the peak rate are thinned out."""
        peak = self.rate * (1 + self.swing)
        if peak <= 0:
            return
        at = self._gap(rng, peak)
        while at < self.seconds:
            rate = self.rate * (1 + self.swing * sin(2 * pi * at / self.period)) if self.swing else self.rate
            if not self.swing or rng.random() * peak < rate:
                yield at
            at += self._gap(rng, peak)

    def _gap(self, rng: Random, rate: float) -> float:
        if self.cv == 0:
            return 1 / rate
        shape = 1 / self.cv**2
        return rng.gammavariate(shape, 1 / (shape * rate))


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float
    kind: Kind


@dataclass(frozen=True, slots=True)
class Workload:
    """Phases, one after the other, or an explicit ``trace``."""

    phases: tuple[Phase, ...] = ()
    trace: tuple[Arrival, ...] = field(default=())
    """By rising time."""

    def __post_init__(self) -> None:
        if bool(self.phases) == bool(self.trace):
            raise ValueError("a workload has either phases or a trace")
        if any(a.at > b.at for a, b in zip(self.trace, self.trace[1:], strict=False)):
            raise ValueError("the arrivals of a trace go by rising time")

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases) or self.trace[-1].at

    def starts(self) -> list[tuple[float, Phase]]:
        """When each phase begins."""
        found, at = [], 0.0
        for phase in self.phases:
            found.append((at, phase))
            at += phase.seconds
        return found

    def arrivals(self, rng: Random) -> Iterator[Arrival]:
        """The open part, by rising time; backlogs are the engine's affair."""
        yield from self.trace
        for began, phase in self.starts():
            for at in phase.arrivals(rng):
                yield Arrival(began + at, phase.kind(rng))


def mix_of(*kinds: Kind, weights: Sequence[float] | None = None) -> Mix:
    return tuple(zip(weights or [1.0] * len(kinds), kinds, strict=True))

"""The cost model: predicted seconds of stage jobs per (model, stage, device class, precision), and how sure they are.

Profiles seed it, observations refine it. Pure: no clock, no randomness; equal calls give equal answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, isfinite, log
from pathlib import Path
from typing import NamedTuple

from scheduler.cost.features import sequence_tokens
from scheduler.cost.profile import ModelShape, Profile, RoleProfile, load
from scheduler.cost.speed import SpeedFactors
from scheduler.cost.stage import Prior, StageCost
from scheduler.cost.work import Target, Work, short_name
from wire.types import Role

STEP_GAIN = 0.25
"""Of a server's speed factor, per observation of a denoising loop; shorter stages tell less."""
OTHER_GAIN = 0.1

GENERIC = {
    Role.ENHANCER: RoleProfile((0.05, 0.01)),
    Role.ENCODER: RoleProfile((0.1, 0.0, 1e-7)),
    Role.DIT: RoleProfile((0.03, 5e-5, 2e-9)),
    Role.DECODER: RoleProfile((0.01, 1e-7)),
    Role.UPSCALER: RoleProfile((0.01, 5e-7)),
}
"""Where nothing at all is known. Observations correct it."""


class Prediction(NamedTuple):
    seconds: float
    low: float
    """2 % of observed times lie below."""
    high: float
    """98 % of observed times lie below: what admission reckons with."""
    source: str
    """How it came about, for people."""


LEAST_SECONDS = 1e-9
"""Of a time that is believed."""


class CostModel:
    """Predicts and learns. Targets that no profile names borrow the nearest profile until observations come in."""

    def __init__(self, profiles: Iterable[Profile] = ()):
        self._profiles = list(profiles)
        self._stages: dict[tuple[Target, Role], StageCost] = {}
        self._speeds = SpeedFactors()
        self.version = 0
        """Counts whatever may change predictions for a target: they hold as long as it does. What is learnt of single
        servers is not among it."""

    def load_profile(self, path: Path) -> Profile:
        """Add a profile file; it seeds targets that have not been asked for yet. Raises ``ProfileError``."""
        profile = load(path)
        self.add_profile(profile)
        return profile

    def add_profile(self, profile: Profile) -> None:
        """Later profiles of one model, device class and precision take the place of earlier ones."""
        self._profiles.append(profile)

    def profile(self, target: Target) -> Profile | None:
        """The profile of exactly this model, device class and precision."""
        best = self._nearest(target)
        return best if best is not None and _distance(best, target) == 0 else None

    def shape(self, target: Target) -> ModelShape:
        """Defaults of the model (steps, guidance, prompt length) and its token geometry."""
        return self._stage(target, Role.DIT).prior.shape

    def predict(self, work: Work, target: Target, server: str | None = None) -> Prediction:
        """Seconds of ``work`` on a server of ``target``, on ``server`` in particular when it is named."""
        stage = self._stage(target, work.role)
        seconds = self.seconds(work, target, server)
        low, high = stage.band()
        return Prediction(seconds, seconds * low, seconds * high, stage.source())

    def seconds(self, work: Work, target: Target, server: str | None = None) -> float:
        """The same without uncertainty: what ordering and placement need, thousands of times a second."""
        stage = self._stage(target, work.role)
        seconds = stage.seconds(work) * self._speeds.factor(server)
        if stage.prior.borrowed and not stage.fit.observations:
            seconds *= self._borrowed_level(target)
        return seconds

    def step_seconds(self, work: Work, target: Target, server: str | None = None) -> float:
        """Of one denoising step (two passes with guidance) of dit work; of the whole job otherwise."""
        return self.seconds(work, target, server) / work.steps

    def is_guess(self, target: Target, role: Role) -> bool:
        """Nothing was measured on such servers: the profile is that of another model or device, or none."""
        stage = self._stage(target, role)
        return stage.prior.borrowed and not stage.fit.observations

    def quantile(self, target: Target, role: Role, q: float) -> float:
        """Factor on predictions that a fraction ``q`` of observed times stays under."""
        return self._stage(target, role).residuals.quantile(q)

    def batch_marginal(self, work: Work, target: Target) -> float:
        """Cost of one further job where such jobs compute together, in jobs: 1 gains nothing, 0 is free."""
        stage = self._stage(target, work.role)
        return stage.batching.marginal(sequence_tokens(work, stage.prior.shape))

    def observe(self, work: Work, target: Target, server: str, seconds: float) -> None:
        """``server`` took ``seconds`` for ``work``; of a progress report, ``work.steps`` are the steps since the last.

        Times that cannot be (below a nanosecond, not finite) are ignored: a stage server may be wrong.
        """
        if not isfinite(seconds) or seconds < LEAST_SECONDS:
            return
        stage = self._stage(target, work.role)
        before = stage.version
        ratio = stage.observe(work, seconds, self._speeds.factor(server))
        self.version += stage.version - before
        if ratio is not None:
            self._speeds.observe(server, ratio, STEP_GAIN if work.role is Role.DIT else OTHER_GAIN)

    def speed(self, server: str) -> float:
        """How many times slower than its class the server is."""
        return self._speeds.factor(server)

    def explain(self, work: Work, target: Target, server: str | None = None) -> tuple[str, ...]:
        """Lines for people: the prediction and how it came about."""
        stage = self._stage(target, work.role)
        prediction = self.predict(work, target, server)
        terms = ", ".join(f"{c:.4g}" for c in stage.fit.coefficients)
        return (
            f"{work.role}: {prediction.seconds:.4g} s, with 96 % from {prediction.low:.4g} to {prediction.high:.4g} s",
            f"prior: {prediction.source}; level {stage.fit.level:.3g} × the prior's",
            f"one pass {stage.pass_seconds(work):.4g} s with coefficients {terms}; {work.passes} passes",
            f"batch of {work.batch}: each further member costs {self.batch_marginal(work, target):.2f} jobs",
            f"server factor {self._speeds.factor(server):.3f}",
        )

    def _stage(self, target: Target, role: Role) -> StageCost:
        stage = self._stages.get((target, role))
        if stage is None:
            stage = self._stages[(target, role)] = StageCost(role, self._prior(target, role))
        return stage

    def _borrowed_level(self, target: Target) -> float:
        """A device that is slow at one stage is taken to be as slow at those not seen yet."""
        known = [self._stages[key].fit for role in Role if (key := (target, role)) in self._stages]
        levels = [log(fit.level) for fit in known if fit.observations]
        return exp(sum(levels) / len(levels)) if levels else 1.0

    def _nearest(self, target: Target) -> Profile | None:
        """Smallest distance; then the longest device class that fits (the most particular); then the latest."""
        return min(
            reversed(self._profiles),
            key=lambda p: (_distance(p, target), -len(p.device_class) if _same_device(p, target) else 0),
            default=None,
        )

    def _prior(self, target: Target, role: Role) -> Prior:
        nearest = self._nearest(target)
        if nearest is None or role not in nearest.roles:  # profiles may leave out optional stages
            shape = nearest.model if nearest is not None and _same_model(nearest, target) else ModelShape(target.model)
            return Prior(GENERIC[role], shape, "a generic guess", 0.05, 0.7, borrowed=True)
        text = f"profile {nearest.model.name} on {nearest.device_class} in {nearest.precision}"
        distance = _distance(nearest, target)
        if distance == 0:
            return Prior(nearest.roles[role], nearest.model, text, 1.0, 0.05, borrowed=False)
        if distance == 1:
            return Prior(nearest.roles[role], nearest.model, f"{text} (another precision)", 0.3, 0.3, borrowed=True)
        shape = nearest.model if _same_model(nearest, target) else ModelShape(target.model)
        return Prior(nearest.roles[role], shape, f"borrowed from {text}", 0.05, 0.7, borrowed=True)


def _distance(profile: Profile, target: Target) -> int:
    """0: made for it. 1: other precision. 2, 3: other device. 4 and more: other model."""
    other_precision = profile.precision != target.precision
    return 4 * (not _same_model(profile, target)) + 2 * (not _same_device(profile, target)) + other_precision


def _same_model(profile: Profile, target: Target) -> bool:
    return short_name(profile.model.name) == target.model


def _same_device(profile: Profile, target: Target) -> bool:
    """``NVIDIA A10`` names ``NVIDIA A10-PCIE`` too, but not ``NVIDIA A100``."""
    name, rest = profile.device_class.casefold(), target.device_class.casefold()
    return rest.startswith(name) and not rest[len(name) : len(name) + 1].isalnum()

"""Everything known about the cost of one stage of one model on one kind of server."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

from scheduler.cost.batching import BatchMarginal
from scheduler.cost.features import Row, anchors, row, sequence_tokens
from scheduler.cost.fit import StageFit
from scheduler.cost.profile import ModelShape, RoleProfile
from scheduler.cost.residuals import ResidualTracker
from scheduler.cost.step_cache import CachedShare
from scheduler.cost.work import Work
from wire.types import Role

OUTLIER = 0.35
"""Log ratio to a well-known job beyond which the server, not the class, must have changed."""
WELL_KNOWN = 4
LEARNING = 2
"""The first observations set the level of an unknown device: their error says nothing about later ones."""
ALONE = 1.25
"""Mean company up to which a job tells what it costs alone, rather than what company costs."""
MAX_CACHED = 4096


@dataclass(frozen=True, slots=True)
class Prior:
    """Where a stage's first coefficients come from."""

    stage: RoleProfile
    shape: ModelShape
    text: str
    level_weight: float
    """Trust in the level, in observations."""
    sigma: float
    """Assumed standard deviation of the log ratio observed / predicted."""
    borrowed: bool
    """From another device or model: the level is a guess."""


class StageCost:
    def __init__(self, role: Role, prior: Prior):
        self.prior = prior
        self.fit = StageFit(prior.stage.coefficients, anchors(role, prior.shape), prior.level_weight)
        self.batching = BatchMarginal(prior.stage.batch_marginal)
        self.residuals = ResidualTracker(prior.sigma)
        self.cached = CachedShare(prior.stage.step_caches)
        self._cache: dict[Work, float] = {}
        self._passes: dict[Row, float] = {}
        self._band: tuple[float, float] | None = None
        self.version = 0
        """Counts whatever changes predictions."""

    def seconds(self, work: Work) -> float:
        """Predicted for a server of usual speed."""
        known = self._cache.get(work)
        if known is None:
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            known = (
                self.pass_seconds(work) * work.passes * self._batch_factor(work) * self.cached.share(work.step_cache)
            )
            self._cache[work] = known
        return known

    def pass_seconds(self, work: Work) -> float:
        """Of one forward pass of one member, or of the whole job of a stage without a loop."""
        return self._row_seconds(row(work, self.prior.shape))

    def band(self) -> tuple[float, float]:
        """Factors on a prediction: 2 % and 98 % of observed times lie below."""
        if self._band is None:
            self._band = (self.residuals.quantile(0.02), self.residuals.quantile(0.98))
        return self._band

    def observe(self, work: Work, seconds: float, speed: float) -> float | None:
        """``seconds`` were observed on a server that is ``speed`` times slower than usual.

        The log ratio to the usual, where it tells of the server: not where a marginal cost may just be wrong.
        """
        usual, features, tokens = seconds / speed, row(work, self.prior.shape), self._tokens(work)
        single, factor = self._row_seconds(features) * work.passes, self.batching.factor(tokens, work.batch)
        if work.step_cache:  # it tells nothing of servers and of jobs that compute every step
            self.cached.observe(work.step_cache, work.steps, usual / (single * factor))
            self._cache.clear()
            self.version += 1
            return None
        log_ratio = log(usual / (single * factor))
        if self.fit.observations >= LEARNING:
            self.residuals.add(log_ratio)
            self._band = None
        # Where nothing was seen alone yet, company that seems to cost more than taking turns is a level that is wrong.
        is_known = self.batching.is_well_known(tokens)
        is_level = not is_known and self.fit.observations < LEARNING and usual > single * work.batch
        if work.batch <= ALONE or is_level:
            self.batching.was_alone(tokens)
            if not self._is_outlier(features, log_ratio):
                self._fit(features, usual / (work.passes * factor))
            return log(seconds / (self._row_seconds(features) * work.passes * factor))
        if not is_known or abs(log_ratio) <= OUTLIER:
            self.batching.observe(tokens, work.batch, usual / single)
            self._cache.clear()
            self.version += 1
        return log(seconds / (single * factor)) if is_known else None

    def _fit(self, features: Row, seconds: float) -> None:
        self.fit.observe(features, seconds)
        if self.fit.refit_if_due():
            self._cache.clear()
            self._passes.clear()
            self.version += 1

    def source(self) -> str:
        count = self.fit.observations
        return f"{self.prior.text}, {count} observation{'' if count == 1 else 's'}"

    def _row_seconds(self, features: Row) -> float:
        known = self._passes.get(features)
        if known is None:
            if len(self._passes) >= MAX_CACHED:
                self._passes.clear()
            known = self._passes[features] = self.fit.seconds(features)
        return known

    def _is_outlier(self, features: Row, log_ratio: float) -> bool:
        cell = self.fit.cell(features)
        return cell is not None and cell.count >= WELL_KNOWN and abs(log_ratio) > OUTLIER

    def _batch_factor(self, work: Work) -> float:
        return self.batching.factor(self._tokens(work), work.batch)

    def _tokens(self, work: Work) -> int:
        return sequence_tokens(work, self.prior.shape)

"""How long and on what to train. ``FULL`` is the recipe of the bundled model, ``SMOKE`` proves that the code runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

Size = tuple[int, int]
"""Height, width in pixels."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Ends with the time or with the steps, whichever is first."""

    seconds: float
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.seconds <= 0 or (self.steps is not None and self.steps < 1):
            raise ValueError(f"a budget needs more than 0 seconds and at least 1 step, got {self}")


@dataclass(frozen=True, slots=True)
class Phase:
    """One pass of the transformer's training."""

    budget: Budget
    peak_learning_rate: float
    size_weights: dict[Size, float]
    """How often a batch of each size is drawn."""
    seed: int


@dataclass(frozen=True, slots=True)
class Plan:
    tokenizer_captions: int
    vae: Budget
    vae_batches: dict[Size, tuple[int, int]]
    """Size → (batch size, how often it is drawn)."""
    scale_batches: int
    """Batches of 16 pictures over which the latents' mean and deviation are measured."""
    latents: dict[Size, int]
    """Size → number of pictures."""
    first: Phase
    second: Phase
    """Continues from ``first`` with more of the larger pictures."""
    batch_at_128: int
    """Batch size at 128 × 128; other sizes get as many pixels, and at least 4 pictures."""

    @property
    def seconds(self) -> float:
        return self.vae.seconds + self.first.budget.seconds + self.second.budget.seconds

    def within(self, seconds: float) -> Plan:
        """The same plan with its time budgets scaled to ``seconds`` in all."""
        factor = seconds / self.seconds
        return replace(
            self,
            vae=_scaled(self.vae, factor),
            first=replace(self.first, budget=_scaled(self.first.budget, factor)),
            second=replace(self.second, budget=_scaled(self.second.budget, factor)),
        )


def _scaled(budget: Budget, factor: float) -> Budget:
    return replace(budget, seconds=budget.seconds * factor)


FULL = Plan(
    tokenizer_captions=20_000,
    vae=Budget(1000),
    # The autoencoder only sees neighbourhoods, so it learns them where they are cheapest.
    vae_batches={(64, 64): (24, 3), (64, 96): (14, 1), (96, 64): (14, 1), (96, 96): (14, 1), (128, 128): (8, 1)},
    scale_batches=10,
    latents={(128, 128): 20_000, (96, 160): 2_500, (160, 96): 2_500, (192, 192): 3_333, (256, 256): 2_000},
    first=Phase(
        Budget(3200),
        peak_learning_rate=1.2e-3,
        size_weights={(128, 128): 20, (96, 160): 2.5, (160, 96): 2.5, (192, 192): 1.7, (256, 256): 1},
        seed=3,
    ),
    second=Phase(
        Budget(1080),
        peak_learning_rate=5e-4,
        size_weights={(128, 128): 4, (96, 160): 1, (160, 96): 1, (192, 192): 4, (256, 256): 8},
        seed=33,
    ),
    batch_at_128=48,
)

SMOKE = Plan(
    tokenizer_captions=2_000,
    vae=Budget(20, steps=2),
    vae_batches={(64, 64): (2, 1)},
    scale_batches=1,
    latents={(64, 64): 4, (64, 96): 4},
    first=Phase(Budget(20, steps=2), 1.2e-3, {(64, 64): 1}, seed=3),
    second=Phase(Budget(20, steps=2), 5e-4, {(64, 96): 1}, seed=33),
    batch_at_128=4,
)

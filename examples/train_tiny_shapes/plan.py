"""How long and on what to train. ``FULL`` is the recipe of the bundled model, ``SMOKE`` proves that the code runs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

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
    """One training."""

    budget: Budget
    peak_learning_rate: float
    seed: int


@dataclass(frozen=True, slots=True)
class PicturePhase(Phase):
    """Of an autoencoder."""

    batches: dict[Size, tuple[int, float]]
    """Size → (pictures in a batch, how often it is drawn)."""
    scale_pictures: int = 64
    """Over which the latents' mean and deviation are measured."""


@dataclass(frozen=True, slots=True)
class DistillationPhase(Phase):
    """Of the autoencoder's inner level."""

    batches: dict[Size, tuple[int, int]]
    """Size → (pictures in a batch, number of batches)."""


@dataclass(frozen=True, slots=True)
class Shift:
    """How far the noise levels lean towards noise: linear in the number of image tokens, as in Z-Image's scheduler."""

    base_tokens: int
    max_tokens: int
    base: float
    maximum: float

    def at(self, tokens: int) -> float:
        return self.base + (self.maximum - self.base) * (tokens - self.base_tokens) / (
            self.max_tokens - self.base_tokens
        )


@dataclass(frozen=True, slots=True)
class FlowPhase(Phase):
    """Of the transformer."""

    mixes: dict[float, dict[Size, float]]
    """Progress from which it holds → how often a batch of each size is drawn."""
    batch_tokens: int
    """Tokens of pictures and captions in a batch, roughly; it has 4 to 96 pictures."""
    shift: Shift
    trains_text_encoder: bool = False
    """AdamW then moves all weights. Otherwise the text encoder stays as it is, and Muon moves the blocks' matrices."""

    @property
    def sizes(self) -> list[Size]:
        return list(dict.fromkeys(size for mix in self.mixes.values() for size in mix))

    def mix(self, progress: float) -> dict[Size, float]:
        return self.mixes[max(start for start in self.mixes if start <= progress)]


@dataclass(frozen=True, slots=True)
class Plan:
    """The fields that end in 8 make the factor-8 model, with which the factor-16 one starts."""

    tokenizer_captions: int
    vae8: PicturePhase
    latents8: dict[Size, int]
    """Size → number of pictures."""
    first8: FlowPhase
    second8: FlowPhase
    inner: DistillationPhase
    vae: PicturePhase
    latents: dict[Size, int]
    first: FlowPhase
    second: FlowPhase

    @property
    def seconds(self) -> float:
        return sum(phase.budget.seconds for phase in self._phases().values())

    def within(self, seconds: float) -> Plan:
        """The same plan with its time budgets scaled to ``seconds`` in all."""
        factor = seconds / self.seconds
        scaled = {
            name: replace(phase, budget=replace(phase.budget, seconds=phase.budget.seconds * factor))
            for name, phase in self._phases().items()
        }
        return replace(self, **scaled)

    def _phases(self) -> dict[str, Phase]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Phase)}


SHIFT8 = Shift(256, 4096, 0.5, 1.15)
"""Z-Image's own."""
SHIFT = Shift(64, 1536, 0.5, 2.0)
"""Large pictures get more noise than with Z-Image's own."""

_256: dict[Size, float] = {(256, 256): 10, (256, 384): 1, (384, 256): 1, (128, 128): 1, (192, 192): 1}
_TO_1536: dict[Size, float] = {
    (64, 64): 0.3,
    (128, 128): 0.7,
    (192, 192): 0.7,
    (256, 256): 8,
    (256, 384): 1,
    (384, 256): 1,
    (512, 512): 4,
    (512, 768): 1,
    (768, 512): 1,
    (1024, 1024): 1.6,
    (1024, 1536): 0.8,
    (1536, 1024): 0.8,
}
_LAST: dict[Size, float] = {
    (128, 128): 0.4,
    (192, 192): 0.6,
    (256, 256): 10,
    (256, 384): 1,
    (384, 256): 1,
    (512, 512): 5,
    (512, 768): 2,
    (768, 512): 2,
    (1024, 1024): 1,
    (1024, 1536): 0.3,
    (1536, 1024): 0.3,
}

FULL = Plan(
    tokenizer_captions=20_000,
    # The autoencoder only sees neighbourhoods, so it learns them where they are cheapest.
    vae8=PicturePhase(
        Budget(1000),
        peak_learning_rate=2e-3,
        seed=21,
        batches={(64, 64): (24, 3), (64, 96): (14, 1), (96, 64): (14, 1), (96, 96): (14, 1), (128, 128): (8, 1)},
    ),
    latents8={(128, 128): 20_000, (96, 160): 2_500, (160, 96): 2_500, (192, 192): 3_333, (256, 256): 2_000},
    first8=FlowPhase(
        Budget(3200),
        peak_learning_rate=1.2e-3,
        seed=3,
        mixes={0: {(128, 128): 20, (96, 160): 2.5, (160, 96): 2.5, (192, 192): 1.7, (256, 256): 1}},
        batch_tokens=4608,
        shift=SHIFT8,
        trains_text_encoder=True,
    ),
    second8=FlowPhase(
        Budget(1080),
        peak_learning_rate=5e-4,
        seed=33,
        mixes={0: {(128, 128): 4, (96, 160): 1, (160, 96): 1, (192, 192): 4, (256, 256): 8}},
        batch_tokens=4608,
        shift=SHIFT8,
        trains_text_encoder=True,
    ),
    inner=DistillationPhase(
        Budget(240),
        peak_learning_rate=2e-3,
        seed=21,
        batches={(128, 128): (32, 90), (96, 160): (32, 12), (160, 96): (32, 12), (256, 256): (8, 12)},
    ),
    vae=PicturePhase(
        Budget(420),
        peak_learning_rate=6e-4,
        seed=22,
        batches={
            (128, 128): (12, 6),
            (96, 160): (12, 1),
            (160, 96): (12, 1),
            (192, 192): (6, 2),
            (256, 256): (3, 4),
            (512, 512): (1, 1),
        },
    ),
    latents={
        (64, 64): 800,
        (128, 128): 2_500,
        (192, 192): 1_500,
        (256, 256): 16_000,
        (256, 384): 1_500,
        (384, 256): 1_500,
        (512, 512): 3_000,
        (512, 768): 800,
        (768, 512): 800,
        (1024, 1024): 400,
        (1024, 1536): 200,
        (1536, 1024): 200,
    },
    first=FlowPhase(
        Budget(4500),
        peak_learning_rate=1.5e-3,
        seed=3,
        mixes={0: _256, 0.35: _TO_1536},
        batch_tokens=6144,
        shift=SHIFT,
    ),
    second=FlowPhase(Budget(1180), peak_learning_rate=8e-4, seed=3, mixes={0: _LAST}, batch_tokens=6144, shift=SHIFT),
)

_FEW = Budget(20, steps=2)
SMOKE = Plan(
    tokenizer_captions=2_000,
    vae8=PicturePhase(_FEW, 2e-3, 21, {(64, 64): (2, 1)}, scale_pictures=8),
    latents8={(64, 64): 4},
    first8=FlowPhase(_FEW, 1.2e-3, 3, {0: {(64, 64): 1}}, 192, SHIFT8, trains_text_encoder=True),
    second8=FlowPhase(_FEW, 5e-4, 33, {0: {(64, 64): 1}}, 192, SHIFT8, trains_text_encoder=True),
    inner=DistillationPhase(_FEW, 2e-3, 21, {(64, 64): (2, 1)}),
    vae=PicturePhase(_FEW, 6e-4, 22, {(64, 96): (2, 1)}, scale_pictures=8),
    latents={(64, 64): 4, (64, 96): 4},
    first=FlowPhase(_FEW, 1.5e-3, 3, {0: {(64, 64): 1}, 0.1: {(64, 96): 1}}, 256, SHIFT),
    second=FlowPhase(_FEW, 8e-4, 3, {0: {(64, 96): 1}}, 256, SHIFT),
)

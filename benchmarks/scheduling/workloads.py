"""The twelve workloads (``scheduler.sim.suite``) in the sizes and on the fleets that the experiments need.

Fleets, eight servers each: Qwen-Image on RTX 4090s with offload, where no server has room for every role ("role sets":
two fit) or for more than one ("exclusive": 20 of the 24 GB are ours); FLUX.1-dev on H100s, where everything fits;
Wan2.2 on A10s, the paper's; and a mixed one whose GPUs differ threefold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache

from benchmarks.scheduling.twin import FOR_EVER, patient
from scheduler.sim import suite
from scheduler.sim.bound import static_rate, with_best_roles
from scheduler.sim.setup import Scenario, ServerSetup
from scheduler.sim.workload import Kind, Mix, Phase, Workload, mix_of, size_class

FLEETS: Mapping[str, Callable[[], Sequence[ServerSetup]]] = {
    "role sets": lambda: suite.fleet("qwen-image-4090-offload", 8),
    "exclusive": lambda: suite.fleet("qwen-image-4090-offload", 8, memory_bytes=suite.EXCLUSIVE_BYTES),
    "fits": lambda: suite.fleet("flux.1-dev-h100", 8),
    "paper": lambda: suite.fleet("wan2.2-a14b-a10", 8),
    "mixed": lambda: suite.heterogeneous().servers,
}

SIZES = [Kind(f"{side}²", side, side, 1) for side in (512, 1024, 1536, 2048)]
"""One step: with more, the dit's share hides the others' and no role would have to change."""
FOUR, ONE = Kind("4 steps", 1024, 1024, 4), Kind("1 step", 1024, 1024, 1)
DRAW, EDIT = Kind("draw", 1024, 1024, 8), Kind("edit", 1024, 1024, 4, text_tokens=2048, image_pixels=2 * 2048 * 2048)
CLIP, CLIP_1 = Kind("4 steps", 480, 832, 4), Kind("1 step", 480, 832, 1)

MIXES: Mapping[str, Mix] = {
    "all 4-step": mix_of(FOUR),
    "half 1-step": mix_of(FOUR, ONE),
    "all 1-step": mix_of(ONE),
    "512²": mix_of(SIZES[0]),
    "512² to 2048² uniform": mix_of(*SIZES),
    "512² to 2048² skewed": mix_of(*SIZES, weights=(8, 4, 2, 1)),
    "2048²": mix_of(SIZES[-1]),
    "drawing": mix_of(DRAW),
    "edits": mix_of(EDIT),
    "standard": suite.STANDARD,
    "clips, half 1-step": mix_of(CLIP, CLIP_1),
}
"""Of the phases of the suite."""

SHIFTS: Mapping[str, tuple[str, ...]] = {
    "2 step shift": ("all 4-step", "half 1-step", "all 1-step", "all 4-step"),
    "3 resolution shift, uniform": ("512²", "512² to 2048² uniform", "2048²"),
    "3 resolution shift, skewed": ("512²", "512² to 2048² skewed", "2048²"),
    "6 edits": ("drawing", "edits", "drawing"),
}
"""Workloads whose mix changes: the mixes of their phases."""

PHASE_SECONDS = 240.0
SHIFT_LOAD = 0.8
"""Of what the best roles of the phase can serve."""


@cache
def shifting(workload: str, fleet: str = "exclusive", *, quick: bool = False) -> Scenario:
    """Phases of equal length, each at the same load."""
    servers = FLEETS[fleet]()
    seconds = PHASE_SECONDS / (4 if quick else 1)
    phases = tuple(at(SHIFT_LOAD, servers, Phase(seconds, MIXES[mix])) for mix in SHIFTS[workload])
    return patient(Scenario(workload, with_best_roles(servers, phases[0]), Workload(phases)))


@cache
def waves(fleet: str, one: str, other: str, load: float, seconds: float, halves: int) -> Scenario:
    """Two mixes in turn, each for ``seconds`` and at the same load."""
    servers = FLEETS[fleet]()
    phases = tuple(at(load, servers, Phase(seconds, MIXES[(one, other)[n % 2]])) for n in range(halves))
    return patient(Scenario(f"{one} and {other}", with_best_roles(servers, phases[0]), Workload(phases)))


@cache
def stationary(mix: str, fleet: str, load: float, requests: int, cv: float = 1.0) -> Scenario:
    """One phase with about so many requests."""
    servers = FLEETS[fleet]()
    phase = at(load, servers, Phase(1.0, MIXES[mix], cv=cv))
    phase = replace(phase, seconds=requests / phase.rate)
    return patient(Scenario(f"{mix} at {load:.0%}", with_best_roles(servers, phase), Workload((phase,))))


@cache
def backlogged(mix: str, fleet: str, requests: int, waiting: int = 100) -> Scenario:
    """So many requests always under way, for about as long as ``requests`` take."""
    servers = FLEETS[fleet]()
    kinds = tuple((weight, replace(kind, deadline=FOR_EVER)) for weight, kind in MIXES[mix])
    phase = Phase(1.0, kinds, backlog=waiting)
    placed = with_best_roles(servers, phase)
    phase = replace(phase, seconds=requests / static_rate(placed, phase))
    return Scenario(f"{mix}, backlog", placed, Workload((phase,)))


def counted(phase: Phase, kinds: Iterable[str]) -> Phase:
    """The phase with the mix that these kinds make."""
    came = Counter(kinds)
    return replace(phase, mix=tuple((float(came[size_class(kind)]), kind) for _, kind in phase.mix))


def at(load: float, servers: Sequence[ServerSetup], phase: Phase) -> Phase:
    """The phase with ``load`` times the rate that its best roles can serve."""
    return replace(phase, rate=load * static_rate(with_best_roles(servers, phase), phase))

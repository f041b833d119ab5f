"""The twelve workloads of the scenario suite, each as a function that makes a ``Scenario``.

``load`` is relative to the fluid bound of the phase, true costs and best roles known. Servers begin with the best roles
for the first phase. ``SUITE`` names them all; ``seconds`` scales how long a scenario lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from scheduler.cost.profile import Profile, RoleProfile
from scheduler.cost.profile import load as load_profile
from scheduler.sim import setup
from scheduler.sim.bound import at_load, with_best_roles
from scheduler.sim.setup import Kill, Scenario, ServerSetup, SlowDown
from scheduler.sim.workload import Kind, Mix, Phase, Workload, mix_of
from wire.types import Role

PROFILES = Path(__file__).parent.parent / "profiles"
EXCLUSIVE_BYTES = 20 * 10**9
"""Of a Qwen-Image server on an RTX 4090: any role fits, no two do."""

STANDARD: Mix = (
    (0.15, Kind("512", 512, 512, 20)),
    (0.25, Kind("768", 768, 768, 20)),
    (0.45, Kind("1024", 1024, 1024, 25)),
    (0.15, Kind("1536", 1536, 1536, 35)),
)
"""vLLM-Omni's."""


@cache
def bundled_profile(name: str) -> Profile:
    """One that comes with the project, by its file's name without ``.toml``. Raises ``ProfileError``."""
    return load_profile(PROFILES / f"{name}.toml")


def fleet(
    profile: Profile | str, count: int, prefix: str = "gpu", memory_bytes: int | None = None
) -> list[ServerSetup]:
    """Equal servers, their roles still to be chosen."""
    found = bundled_profile(profile) if isinstance(profile, str) else profile
    return [
        ServerSetup(f"{prefix}{i}", found, roles=frozenset(), memory_bytes=memory_bytes) for i in range(1, count + 1)
    ]


def scaled(profile: Profile, factor: float, device_class: str) -> Profile:
    """The same model on a device that is ``factor`` times slower at everything; also: a profile that is wrong."""
    roles: dict[Role, RoleProfile] = {
        role: replace(part, coefficients=tuple(factor * c for c in part.coefficients))
        for role, part in profile.roles.items()
    }
    return replace(profile, device_class=device_class, roles=roles)


def scenario(
    name: str, servers: Sequence[ServerSetup], *phases: Phase, loads: float | Sequence[float] = 0.9
) -> Scenario:
    """Phases at their loads, servers with the best roles for the first."""
    each = [loads] * len(phases) if isinstance(loads, int | float) else loads
    loaded = tuple(
        phase if phase.rate or phase.backlog else at_load(load, servers, phase)
        for phase, load in zip(phases, each, strict=True)
    )
    return Scenario(name, with_best_roles(servers, phases[0]), Workload(loaded))


def stationary(seconds: float = 600, load: float = 0.7) -> Scenario:
    """1. Poisson, one size; everything fits each GPU."""
    return scenario("stationary", fleet("flux.1-dev-h100", 8), Phase(seconds, mix_of(Kind("1024"))), loads=load)


def step_shift(seconds: float = 2400, load: float = 0.8, memory_bytes: int | None = None) -> Scenario:
    """2. The paper's: all 4-step, then half 1-step, then all 1-step, then 4-step again; roles can't all be together."""
    slow, fast = Kind("4 steps", 1024, 1024, 4, deadline=1800), Kind("1 step", 1024, 1024, 1, deadline=1800)
    mixes = (mix_of(slow), mix_of(slow, fast), mix_of(fast), mix_of(slow))
    servers = fleet("qwen-image-4090-offload", 8, memory_bytes=memory_bytes)
    return scenario("step shift", servers, *(Phase(seconds / 4, mix) for mix in mixes), loads=load)


def resolution_shift(seconds: float = 1800, load: float = 0.8, *, skewed: bool = False) -> Scenario:
    """3. From 512² over all sizes alike (or ``skewed`` to the small) to 2048²."""
    sizes = [Kind(str(side), side, side, 20, deadline=1800) for side in (512, 1024, 1536, 2048)]
    middle = mix_of(*sizes, weights=(8, 4, 2, 1) if skewed else None)
    mixes = (mix_of(sizes[0]), middle, mix_of(sizes[-1]))
    servers = fleet("qwen-image-4090-offload", 8)
    return scenario("resolution shift", servers, *(Phase(seconds / 3, mix) for mix in mixes), loads=load)


def bursts(seconds: float = 900, load: float = 0.7, cv: float = 3.0) -> Scenario:
    """4. Gamma arrivals of the standard mix."""
    return scenario("bursts", fleet("flux.1-dev-h100", 8), Phase(seconds, STANDARD, cv=cv), loads=load)


def diurnal(seconds: float = 3600, load: float = 0.5) -> Scenario:
    """5. The rate swings by 80 % around the load, twice."""
    phase = Phase(seconds, STANDARD, swing=0.8, period=seconds / 2)
    return scenario("diurnal", fleet("flux.1-dev-h100", 8), phase, loads=load)


def edits(seconds: float = 1200, load: float = 0.8) -> Scenario:
    """6. From text alone to edits: two uploaded pictures and a long prompt for the encoder, few steps."""
    draw = Kind("draw", 1024, 1024, 8)
    edit = Kind("edit", 1024, 1024, 4, text_tokens=2048, image_pixels=2 * 2048 * 2048)
    servers = fleet("qwen-image-4090-offload", 8)
    return scenario("edits", servers, Phase(seconds / 2, mix_of(draw)), Phase(seconds / 2, mix_of(edit)), loads=load)


def heterogeneous(seconds: float = 900, load: float = 0.8) -> Scenario:
    """7. Three classes of GPU, the slowest three times slower than the fastest."""
    fast = bundled_profile("qwen-image-2512-h100")
    servers = [
        *fleet(fast, 2, "fast"),
        *fleet(scaled(fast, 1.8, "GPU B"), 3, "medium", memory_bytes=48 * 10**9),
        *fleet(scaled(fast, 3.0, "GPU C"), 3, "slow", memory_bytes=48 * 10**9),
    ]
    return scenario("heterogeneous", servers, Phase(seconds, STANDARD), loads=load)


def faults(seconds: float = 900, load: float = 0.6) -> Scenario:
    """8. One server gets three times slower, others die and come back, one freezes."""
    base = stationary(seconds, load)
    struck: tuple[setup.Fault, ...] = (
        SlowDown(seconds * 0.2, "gpu1", 3.0),
        Kill(seconds * 0.3, "gpu2", restart_after=30.0),
        setup.Freeze(seconds * 0.5, "gpu3", 10.0),
        Kill(seconds * 0.6, "gpu4", restart_after=30.0),
        Kill(seconds * 0.6, "gpu5", restart_after=30.0),
        SlowDown(seconds * 0.8, "gpu1", 1.0),
    )
    return replace(base, name="faults", faults=struck)


def unseen_resolution(seconds: float = 900, load: float = 0.8) -> Scenario:
    """9. For schedulers seeded with a wrong profile (see ``scaled``): half-way, a size never seen."""
    known, new = Kind("1024"), Kind("1280x768", 768, 1280, 25)
    servers = fleet("flux.1-dev-h100", 8)
    phases = (Phase(seconds / 2, mix_of(known)), Phase(seconds / 2, mix_of(known, new)))
    return scenario("unseen resolution", servers, *phases, loads=load)


def overload(seconds: float = 900, load: float = 2.0) -> Scenario:
    """10. Twice as much as can be served; one tenant asks for three quarters of it."""
    calm, flood = Kind("calm", tenant="calm", deadline=60), Kind("flood", tenant="flood", deadline=60)
    return scenario(
        "overload", fleet("flux.1-dev-h100", 8), Phase(seconds, mix_of(calm, flood, weights=(1, 3))), loads=load
    )


def light(seconds: float = 4 * 3600, load: float = 0.15) -> Scenario:
    """11. Hours with little to do: nothing should move."""
    servers = fleet("qwen-image-4090-offload", 8)
    return scenario("light", servers, Phase(seconds, mix_of(Kind("1024", steps=8))), loads=load)


def standard(seconds: float = 900, load: float = 0.8) -> Scenario:
    """12. vLLM-Omni's mix of sizes where encoder and dit do not fit together."""
    return scenario("standard", fleet("qwen-image-4090-offload", 8), Phase(seconds, STANDARD), loads=load)


SUITE: Mapping[str, Callable[[], Scenario]] = {
    "stationary": stationary,
    "step_shift": step_shift,
    "resolution_shift": resolution_shift,
    "bursts": bursts,
    "diurnal": diurnal,
    "edits": edits,
    "heterogeneous": heterogeneous,
    "faults": faults,
    "unseen_resolution": unseen_resolution,
    "overload": overload,
    "light": light,
    "standard": standard,
}
"""In the order of the list of workloads."""


def backlog(base: Scenario, seconds: float, requests: int = 1000, phase: int = 0) -> Scenario:
    """The servers and one phase's mix of another scenario, with so many requests always under way: for throughput."""
    mix = tuple((weight, replace(kind, deadline=1e9)) for weight, kind in base.workload.phases[phase].mix)
    only = Phase(seconds, mix, backlog=requests)
    return replace(
        base, name=f"{base.name}, backlog", workload=Workload((only,)), servers=with_best_roles(base.servers, only)
    )

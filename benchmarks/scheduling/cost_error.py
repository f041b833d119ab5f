"""Row 8: how fast predictions become right on a device never seen, and at a resolution never seen."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from statistics import mean

from benchmarks.scheduling.results import Goal, Report, Row, table
from benchmarks.scheduling.statistics import estimate
from benchmarks.scheduling.tasks import Effort, Figures, Results, Task
from scheduler.cost.model import CostModel
from scheduler.cost.profile import Profile
from scheduler.cost.work import Target, Work
from scheduler.sim.suite import bundled_profile
from wire.types import Role

NOISE = 0.01
OBSERVATIONS = 20
SIDES = (512, 768, 1024, 1536)
UNSEEN = (640, 896, 1280)
"""Inside the range of ``SIDES``."""
CASES = {
    "L20, seeded with the H100's profile": ("flux.1-dev-h100", "flux.1-dev-l20"),
    "RTX 4090, seeded with the H100's profile": ("qwen-image-2512-h100", "qwen-image-4090-offload"),
    "SD3 on L20, seeded with FLUX on L20": ("flux.1-dev-l20", "sd3-l20"),
}
"""What is believed at first, and what is true."""


def tasks(effort: Effort) -> list[Task]:
    return effort.tasks(errors, [(case,) for case in CASES])


def errors(case: str, seed: int, quick: bool) -> Figures:  # noqa: ARG001 # it is quick anyway
    """Mean absolute percentage error of dit predictions after 20 observations, at sizes seen and not seen."""
    believed, true = (bundled_profile(name) for name in CASES[case])
    model, target = CostModel([believed]), Target.of(true.model.name, true.device_class, true.precision)
    random = Random(f"{case}/{seed}")
    order = [SIDES[i % len(SIDES)] for i in range(OBSERVATIONS)]
    random.shuffle(order)
    before = _error(model, true, target, SIDES)
    for side in order:
        model.observe(_work(side), target, "gpu", _seconds(true, side) * random.lognormvariate(0.0, NOISE))
    return {
        "before": before,
        "seen": _error(model, true, target, SIDES),
        "unseen": _error(model, true, target, UNSEEN),
    }


def _error(model: CostModel, true: Profile, target: Target, sides: tuple[int, ...]) -> float:
    return mean(abs(model.seconds(_work(side), target, "gpu") / _seconds(true, side) - 1) for side in sides)


def _work(side: int) -> Work:
    return Work(Role.DIT, height=side, width=side, steps=20)


def _seconds(true: Profile, side: int) -> float:
    target = Target.of(true.model.name, true.device_class, true.precision)
    return CostModel([replace(true)]).seconds(_work(side), target)


def report(results: Results) -> Report:
    found = Report("Cost model")
    body = []
    for case in CASES:
        runs = results.of(errors, case)
        seen, unseen, before = (estimate([run[f] for run in runs]) for f in ("seen", "unseen", "before"))
        measure = f"error after {OBSERVATIONS} observations (noise 1 %)"
        found.rows.append(Row(8, f"{measure}, unseen device", case, seen, "", Goal("<=", 0.02)))
        found.rows.append(Row(8, f"{measure}, unseen resolution", case, unseen, "", Goal("<=", 0.05)))
        body.append([case, str(before), str(seen), str(unseen)])
    sizes = ", ".join(f"{side}²" for side in UNSEEN)
    found.text = [
        f"Mean absolute percentage error of dit predictions; observed at {', '.join(f'{s}²' for s in SIDES)}, "
        f"unseen: {sizes}.",
        table(["case", "before any observation", "sizes observed", "sizes not observed"], body),
    ]
    return found

"""Row 10: everything fits one GPU; ours must not lose to as many monolithic replicas. Simulated; eight H100s.

The experiment of the scenario suite (``benchmarks.scheduling.fused``), with fewer seeds.

python -m benchmarks.everything_fits
"""

from __future__ import annotations

from benchmarks.rows import Row, show
from benchmarks.scheduling import fused
from benchmarks.scheduling.tasks import Effort, default_processes, run_all

COMMAND = "python -m benchmarks.everything_fits"
SEEDS = 3


def rows(seeds: int = SEEDS) -> list[Row]:
    """The value is the end of the interval on the goal's bad side."""
    found = fused.report(run_all(fused.tasks(Effort(seeds, quick=seeds < SEEDS)), default_processes())).rows
    used = tuple(range(1, seeds + 1))
    return [Row(10, row.measure, row.case, row.worst, "×", row.goal, "simulated", COMMAND, used) for row in found]


def main() -> None:
    show(rows())


if __name__ == "__main__":
    main()

"""Run the scenario suite: print the goal table and write docs/results/scheduling.{md,json} and their plots.

python -m benchmarks.scheduling [--quick] [--seeds 20] [--only backlog,ordering]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from benchmarks.scheduling import backlog, fused, ordering, overload, shifting, stillness
from benchmarks.scheduling.results import Report, table, write_json
from benchmarks.scheduling.tasks import Effort, default_processes, run_all

EXPERIMENTS: dict[str, ModuleType] = {
    "backlog": backlog,
    "shifting": shifting,
    "ordering": ordering,
    "stillness": stillness,
    "overload": overload,
    "fused": fused,
}
RESULTS = Path("docs/results")
HEAD = ("#", "measure", "case", "value [95 % interval]", "goal", "")


def main(arguments: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    chosen = [EXPERIMENTS[name] for name in (args.only.split(",") if args.only else EXPERIMENTS)]
    effort = Effort(args.seeds or (3 if args.quick else 20), quick=args.quick)
    began = time.monotonic()
    results = run_all([task for module in chosen for task in module.tasks(effort)], args.processes)
    reports: list[Report] = [module.report(results) for module in chosen]
    for report in reports:
        print(f"\n{report.title}")
        print(table(HEAD, [row.cells() for row in report.rows]))
        print("\n\n".join(report.text))
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    if not (args.quick or args.only):
        write_json(RESULTS / "scheduling.json", [row for report in reports for row in report.rows], "simulator")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few seeds, short runs; writes no files")
    parser.add_argument("--seeds", type=int, help="paired seeds (20; 3 with --quick)")
    parser.add_argument("--only", help=f"comma-separated: {', '.join(EXPERIMENTS)}; writes no files")
    parser.add_argument("--processes", type=int, default=default_processes())
    return parser


if __name__ == "__main__":
    main()

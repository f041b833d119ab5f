"""Run the scenario suite: print the goal table and write docs/results/scheduling.{md,json} and their plots.

python -m benchmarks.scheduling [--quick] [--seeds 20] [--only backlog,ordering] [--output docs/results] [--name …]

What every run came to is kept in a folder (--runs); the files are written from all that lies there, so that an
experiment can be repeated by itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from benchmarks.scheduling import (
    backlog,
    cost_error,
    decisions,
    fused,
    hardship,
    leaving,
    models,
    ordering,
    overload,
    plots,
    sharing,
    shifting,
    stillness,
    waves,
)
from benchmarks.scheduling.results import Report, write_json
from benchmarks.scheduling.tasks import Effort, Results, default_processes, run_all
from benchmarks.scheduling.writing import goals, write_markdown

EXPERIMENTS: dict[str, ModuleType] = {
    "backlog": backlog,
    "shifting": shifting,
    "ordering": ordering,
    "stillness": stillness,
    "waves": waves,
    "cost": cost_error,
    "overload": overload,
    "fused": fused,
    "decisions": decisions,
    "hardship": hardship,
    "sharing": sharing,
    "leaving": leaving,
    "models": models,
}
PLOTS: dict[str, Callable[[Results, Path], None]] = {
    "backlog": plots.throughput,
    "shifting": plots.shifts,
    "ordering": plots.orders,
}
RUNS = Path("out/scheduling")


def main(arguments: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    chosen = args.only.split(",") if args.only else list(EXPERIMENTS)
    seeds = args.seeds or (3 if args.quick else 20)
    if not args.report:
        run(chosen, Effort(seeds, quick=args.quick), args.processes, args.runs)
    write(args.runs, args.output, args.name)


def run(chosen: Sequence[str], effort: Effort, processes: int, folder: Path) -> None:
    """Run experiments, one after the other, and keep what they came to in ``folder``."""
    for name in chosen:
        print(name, file=sys.stderr)
        run_all(EXPERIMENTS[name].tasks(effort), processes).save(folder / f"{name}.jsonl")


def write(runs: Path, output: Path | None, name: str = "scheduling") -> None:
    """Print the tables of all experiments kept in ``runs``; write files ``name`` below ``output`` unless it is None."""
    results = Results()
    reports: dict[str, Report] = {}
    for experiment, module in EXPERIMENTS.items():
        if (path := runs / f"{experiment}.jsonl").exists():
            results.load(path)
            reports[experiment] = module.report(results)
    for report in reports.values():
        print(f"\n{report.title}\n", goals(report.rows) if report.rows else "", *report.text, sep="\n")
    if output is not None:
        _write(output, name, results, reports)


def _write(folder: Path, file: str, results: Results, reports: dict[str, Report]) -> None:
    pictures = {}
    for name, report in reports.items():
        if name in PLOTS:
            pictures[report.title] = f"{name}.png"
            PLOTS[name](results, folder / f"{name}.png")
    if "shifting" in reports:
        plots.roles_over_time(folder / "roles.png")
        reports["shifting"].text.append("Holders of each role through workload 2 (seed 1):\n\n![roles](roles.png)")
    write_markdown(folder / f"{file}.md", list(reports.values()), pictures)
    write_json(folder / f"{file}.json", [row for report in reports.values() for row in report.rows], "simulator")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few seeds, short runs")
    parser.add_argument("--seeds", type=int, help="paired seeds (20; 3 with --quick)")
    parser.add_argument("--only", help=f"comma-separated: {', '.join(EXPERIMENTS)}")
    parser.add_argument("--processes", type=int, default=default_processes())
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder for what each run came to")
    parser.add_argument("--report", action="store_true", help="run nothing, report what is kept")
    parser.add_argument("--output", type=Path, help="folder to write Markdown, JSON and plots to; none by default")
    parser.add_argument("--name", default="scheduling", help="of these files, where few experiments are in the folder")
    return parser


if __name__ == "__main__":
    main()

"""Compare ways to scale: print the rows, and write docs/results/autoscaling.{md,json}.

python -m benchmarks.autoscaling [--seeds 20] [--loads day,drift] [--processes 2] [--output docs/results] [--report]

What every run came to is kept in out/autoscaling; --report writes the files from that alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import rows
from benchmarks.autoscaling import report, runs
from benchmarks.autoscaling.quick import Figures
from benchmarks.autoscaling.reactive import GRID
from benchmarks.autoscaling.workloads import LOADS
from benchmarks.scheduling.tasks import Results, Task, run_all

KEPT = Path("out/autoscaling")
SEARCH_SEED = 1


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--loads", default=",".join(LOADS), help="(default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, help="folder for autoscaling.md and .json")
    parser.add_argument("--report", action="store_true", help="run nothing, report what is kept")
    args = parser.parse_args(arguments)
    loads = args.loads.split(",")
    searched = {(name, load): _searched(name, load, args.processes) for name in GRID for load in loads}
    chosen = {key: runs.best(found) for key, found in searched.items()}
    if not args.report:
        for seed in range(1, args.seeds + 1):
            for load in loads:
                print(f"seed {seed}: {load}", file=sys.stderr, flush=True)
                run_all(_tasks(load, chosen, seed), args.processes).save(_kept(load, seed))
    results = Results()
    seeds = [seed for seed in range(1, args.seeds + 1) if all(_kept(load, seed).exists() for load in loads)]
    for load in loads:
        for seed in seeds:
            results.load(_kept(load, seed))
    found = rows.show(report.rows_of(results, loads, chosen, seeds))
    if args.output is not None:
        rows.write(args.output / "autoscaling.json", found)
        text = report.markdown(results, loads, chosen, searched, seeds)
        (args.output / "autoscaling.md").write_text(text, encoding="utf-8")


def _tasks(load: str, chosen: dict[tuple[str, str], str], seed: int) -> list[Task]:
    return [Task(runs.one, key, seed) for key in report.contenders(load, chosen)]


def _searched(contender: str, load: str, processes: int) -> dict[str, Figures]:
    """Every setting of a grid, with one seed. Kept as well: it takes minutes."""
    path = KEPT / f"{contender}-{load.replace(' ', '-')}.jsonl"
    if not path.exists():
        print(f"the grid of {contender}: {load}", file=sys.stderr, flush=True)
        keys = [(contender, setting, load) for setting in GRID[contender]]
        run_all([Task(runs.one, key, SEARCH_SEED) for key in keys], processes).save(path)
    found = Results()
    found.load(path)
    return {
        setting: Figures(figures["met"], figures["seconds"])
        for setting in GRID[contender]
        for figures in found.of(runs.one, contender, setting, load)
    }


def _kept(load: str, seed: int) -> Path:
    return KEPT / f"{load.replace(' ', '-')}-{seed}.jsonl"


if __name__ == "__main__":
    main()

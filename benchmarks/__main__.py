"""Measure the goal table's rows: print them, and write pipeline.json, pipeline.md and plots.

python -m benchmarks [--only 5,6,startup] [--full] [--quick] [--output docs/results]

All rows but 8 take about ten minutes on two cores that have nothing else to do. A row measured anew replaces its old
figures in the files, and the others stay. A benchmark that fails keeps no other from running; the exit status says so.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import pipeline
from benchmarks.rows import Row, show

OUTPUT = Path("docs/results")
QUICK = 0.1
"""Share of the usual effort."""
EXPERIMENTS = ("backlog", "shifting", "ordering", "overload", "cost")


@dataclass(frozen=True, slots=True)
class Benchmark:
    what: str
    ids: tuple[int, ...]
    """Rows of the goal table; none: it prints its figures, and keeps none."""
    measure: Callable[[float], Iterable[Row]]
    """Takes its share of the usual effort. Its imports are its own, since some are slow."""
    usual: bool = True
    """Part of a run that names nothing."""


def _rows(module: str, **counts: int) -> Callable[[float], Iterable[Row]]:
    """Of ``benchmarks.MODULE``; ``counts`` are what its ``rows`` takes, 2 at least."""

    def measure(effort: float) -> Iterable[Row]:
        given = {name: max(2, round(count * effort)) for name, count in counts.items()}
        found: Iterable[Row] = import_module(f"benchmarks.{module}").rows(**given)
        return found

    return measure


def _gateway(effort: float) -> Iterable[Row]:
    cost = import_module("benchmarks.gateway_cost")
    found: Iterable[Row] = cost.rows(cost.Effort(max(1, round(4 * effort)), max(100, round(200 * effort))))
    return found


def _printed(module: str, *arguments: str) -> Callable[[float], Iterable[Row]]:
    def measure(_effort: float) -> Iterable[Row]:
        main: Any = import_module(f"benchmarks.{module}").main
        main(list(arguments)) if arguments else main()
        return ()

    return measure


def _scheduling(_effort: float) -> Iterable[Row]:
    suite, tasks = (import_module(f"benchmarks.scheduling.{name}") for name in ("__main__", "tasks"))
    folder = Path("out/bench")
    suite.run(EXPERIMENTS, tasks.Effort(2, quick=True), tasks.default_processes(), folder)
    suite.write(folder, folder)
    print(f"\nTables and plots are in {folder}.")
    return ()


BENCHMARKS: dict[str, Benchmark] = {
    "idle": Benchmark("the dit's idle share while hand-offs are delayed", (1,), _rows("handoff.idle", jobs=20)),
    "handoff": Benchmark("what of a hand-off the device sees", (2,), _rows("handoff.exposed", rounds=200)),
    "throughput": Benchmark(
        "a backlog through eight servers, against the fluid bound", (3,), _rows("throughput", seconds=60)
    ),
    "transfer": Benchmark("bandwidth between stage servers", (4,), _rows("handoff.transfer")),
    "gateway": Benchmark("the gateway's processor time and latency per request", (5, 6, 7), _gateway),
    "baselines": Benchmark(
        "the bundled model, ours beside what a user would run", (8,), _rows("side_by_side", requests=24), usual=False
    ),
    "memory": Benchmark("weights that do not fit: ours beside monoliths", (9,), _rows("memory_bound", seeds=5)),
    "fits": Benchmark("weights that fit: ours beside monoliths", (10,), _rows("everything_fits", seeds=3)),
    "codecs": Benchmark("writing pictures", (11,), _rows("codecs")),
    "growth": Benchmark(
        "memory of every process through a thousand requests", (12,), _rows("memory_growth", requests=1000)
    ),
    "prompts": Benchmark("what repeated prompts save", (13,), _rows("repeated_prompts", requests=40)),
    "fleet": Benchmark(
        "a thousand servers on one gateway, and the largest fleet kept busy",
        (14,),
        _rows("large_fleet", servers=1000, seconds=15),
    ),
    "startup": Benchmark("from nothing to the first picture", (), _rows("startup", rounds=2)),
    "wire": Benchmark("tensors and messages between two processes", (), _printed("wire_throughput"), usual=False),
    "bodies": Benchmark(
        "ways to build a response with pictures in it", (), _printed("response_body", "--seconds", "0.3"), usual=False
    ),
    "requests": Benchmark(
        "what keys, limits and usage add to a request", (), _printed("request_cost", "--rounds", "2"), usual=False
    ),
    "scheduling": Benchmark(
        f"{', '.join(EXPERIMENTS)}: two seeds and short runs; make bench-scheduling does it properly",
        (),
        _scheduling,
        usual=False,
    ),
}
OTHERS = """\
by themselves:
  make bench-gpu                      models of full size on one GPU
  make bench-scheduling               the whole scenario suite, and the real gateway beside it
  python -m benchmarks.company        what jobs that compute together gain
  python -m benchmarks.decode_lag     what decoding clients' pictures makes the gateway's event loop wait
  python -m benchmarks.page_streams   what people who watch the page cost the gateway
  python -m benchmarks.guidance       what a server without work gains that shares another's guided steps; an hour
  python -m benchmarks.previews       what intermediate pictures cost the finished ones; an hour
  python -m benchmarks.role_moves     what jobs wait while a server changes its roles
  python -m benchmarks.role_switch    what a change of roles takes on the real engine
"""


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    names = chosen.only or [name for name, each in BENCHMARKS.items() if each.usual or (chosen.full and each.ids)]
    failed = []
    for name in names:
        benchmark = BENCHMARKS[name]
        numbers = f" (row {', '.join(map(str, benchmark.ids))})" if benchmark.ids else ""
        print(f"# {name}{numbers}: {benchmark.what}\n", flush=True)
        began = time.monotonic()
        try:
            found = show(benchmark.measure(QUICK if chosen.quick else 1.0))
        except Exception:  # whatever it is: the others have nothing to do with it
            traceback.print_exc()
            failed.append(name)
            continue
        print(f"\n{time.monotonic() - began:.0f} s\n", flush=True)
        if found and not chosen.quick:
            pipeline.keep(chosen.output, found)
    if failed:
        print(f"failed, with nothing kept: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _names(given: str) -> list[str]:
    """Of benchmarks, by their names or by the rows that they measure; each once."""
    of_row = {str(number): name for name, benchmark in BENCHMARKS.items() for number in benchmark.ids}
    names = [of_row.get(word, word) for word in given.split(",")]
    if strange := [name for name in names if name not in BENCHMARKS]:
        known = f"{', '.join(BENCHMARKS)} are, and rows {', '.join(sorted(of_row, key=int))}"
        raise argparse.ArgumentTypeError(f"{strange[0]!r} is no benchmark; {known}")
    return list(dict.fromkeys(names))


def _parser() -> argparse.ArgumentParser:
    listed = "  name        row\n" + "\n".join(
        f"  {name:10}  {', '.join(map(str, each.ids)) or '-':8} {each.what}{'' if each.usual else ' *'}"
        for name, each in BENCHMARKS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}\n{listed}\n\n* only where it is named, or with --full if it has a row",
        epilog=OTHERS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", type=_names, metavar="NAMES", help="comma-separated names or rows (default: all)")
    parser.add_argument("--full", action="store_true", help="row 8 as well")
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the effort, to see that it works; writes no file"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"folder of the files (default: {OUTPUT})")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `… | head` ends us without a word, as it does other programs
    sys.exit(main())

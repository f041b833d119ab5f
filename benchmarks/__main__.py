"""The quick benchmarks: print their figures, write plots to out/bench. A minute or two in all."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import request_cost, response_body, wire_throughput
from benchmarks.scheduling.__main__ import run, write
from benchmarks.scheduling.tasks import Effort, default_processes

OUTPUT = Path("out/bench")
EXPERIMENTS = ("backlog", "shifting", "ordering", "overload", "cost")


def bodies() -> None:
    response_body.main(["--seconds", "0.3"])


def requests() -> None:
    request_cost.main(["--rounds", "2"])


def scheduling() -> None:
    run(EXPERIMENTS, Effort(2, quick=True), default_processes(), OUTPUT)
    write(OUTPUT, OUTPUT)
    print(f"\nTables and plots are in {OUTPUT}.")


BENCHMARKS: dict[str, tuple[str, Callable[[], None]]] = {
    "wire": ("tensors and messages between two processes", wire_throughput.main),
    "bodies": ("ways to build a response with pictures in it", bodies),
    "requests": ("what keys, limits and usage add to a request", requests),
    "scheduling": (
        f"{', '.join(EXPERIMENTS)}: two seeds and short runs; make bench-scheduling does it properly",
        scheduling,
    ),
}
OTHERS = """\
by themselves:
  make bench-gpu                      models of full size on one GPU
  make bench-scheduling               the whole scenario suite, and the real gateway beside it
  python -m benchmarks.decode_lag     what decoding clients' pictures makes the gateway's event loop wait
  python -m benchmarks.previews       what intermediate pictures cost the finished ones; an hour
  python -m benchmarks.role_switch    what a change of roles takes on the real engine
"""


def main(arguments: Sequence[str] | None = None) -> None:
    for name in _parser().parse_args(arguments).only or BENCHMARKS:
        what, measure = BENCHMARKS[name]
        print(f"# {name}: {what}\n", flush=True)
        measure()
        print()


def _names(given: str) -> list[str]:
    names = given.split(",")
    if strange := [name for name in names if name not in BENCHMARKS]:
        raise argparse.ArgumentTypeError(f"{strange[0]!r} is no benchmark; {', '.join(BENCHMARKS)} are")
    return names


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:10}  {what}" for name, (what, _) in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}\n\n{listed}",
        epilog=OTHERS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", type=_names, metavar="NAMES", help="comma-separated (default: all)")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `… | head` ends us without a word, as it does other programs
    main()

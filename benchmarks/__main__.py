"""The quick benchmarks: print their figures, write plots to out/bench.

python -m benchmarks
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import response_body, wire_throughput
from benchmarks.scheduling.__main__ import run, write
from benchmarks.scheduling.tasks import Effort, default_processes

OUTPUT = Path("out/bench")
EXPERIMENTS = ("backlog", "shifting", "ordering", "overload", "cost")


def main() -> None:
    print("# Wire")
    wire_throughput.main()
    print("\n# Bodies of responses")
    response_body.main(["--seconds", "0.3"])
    print("\n# Scheduling, a quick look: two seeds and short runs; make bench-scheduling does it properly")
    run(EXPERIMENTS, Effort(2, quick=True), default_processes(), OUTPUT)
    write(OUTPUT, OUTPUT)
    print(f"\nTables and plots are in {OUTPUT}.")


if __name__ == "__main__":
    main()

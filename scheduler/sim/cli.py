"""``python -m scheduler simulate``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scheduler.roles.problem import Infeasible
from scheduler.sim import report
from scheduler.sim.engine import simulate
from scheduler.sim.policies import NAMES, named
from scheduler.sim.scenario_file import ScenarioError, read


def simulate_main(argv: list[str], program: str = "python -m scheduler") -> int:
    """Run a scenario file. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"{program} simulate", description="Run a scenario in virtual time; see docs/simulator.md."
    )
    parser.add_argument("scenario", type=Path, help="TOML file")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals, noise and mishaps (default: %(default)s)")
    parser.add_argument("--policies", choices=NAMES, default="elastic", help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for plots")
    args = parser.parse_args(argv)
    try:
        scenario = read(args.scenario)
        result = simulate(scenario, named(args.policies, scenario), args.seed)
        _say(*report.table(result))
        if args.out is not None:
            _say(*(f"wrote {path}" for path in report.plot(result, args.out)))
    except (ScenarioError, report.PlotsUnavailable, Infeasible) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))

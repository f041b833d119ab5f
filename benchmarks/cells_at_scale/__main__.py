"""Ten cells with ten thousand stage servers, on paper: a gateway is lost, stands still, is restarted.

python -m benchmarks.cells_at_scale [--cells 10] [--servers 10000] [SCENARIO …]

Simulated, with the product's own code of who belongs where and virtual time; ``world`` says what is assumed.
"""

from __future__ import annotations

import argparse
import os

from benchmarks.cells_at_scale.scenarios import SCENARIOS, Outcome, settled
from benchmarks.cells_at_scale.world import Fleet, World

HEADER = ("what happens", "all serve again", "all rests", "servers of a cell then", "sent elsewhere")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cells_at_scale", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--cells", type=int, default=Fleet().cells)
    parser.add_argument("--servers", type=int, default=Fleet().servers)
    options = parser.parse_args()
    unknown = [name for name in options.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    print(_line(HEADER))
    print(_line(["---"] * len(HEADER)), flush=True)
    fleet = Fleet(options.cells, options.servers)
    at_rest: World | None = None
    for name in options.scenarios or SCENARIOS:
        scenario = SCENARIOS[name]
        if scenario.before is settled:
            at_rest = at_rest or settled(fleet)
        child = os.fork()  # so that several begin with one settled fleet, which takes long to come by
        if child == 0:
            world = at_rest if at_rest and scenario.before is settled else scenario.before(fleet)
            print(_line(_cells(scenario.what(world), fleet)), flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise SystemExit(f"{name} failed")


def _cells(outcome: Outcome, fleet: Fleet) -> list[str]:
    spread = outcome.spread
    sizes = f"{min(spread):,} to {max(spread):,} in {len(spread)}"
    homeless = fleet.servers - sum(spread)
    served = f"never: {homeless:,} find no room" if homeless else _seconds(outcome.served)
    moves = ", ".join(f"{count:,} {why}" for why, count in sorted(outcome.moves.items())) or "none"
    given_up = f"; {outcome.gave_up:,} times a server gave up" if outcome.gave_up else ""
    return [outcome.scenario, served, _seconds(outcome.rest), sizes, moves + given_up]


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.3g} s"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

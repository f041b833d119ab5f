"""Ten cells with ten thousand stage servers, on paper: a gateway is lost, stands still, is restarted.

python -m benchmarks.cells_at_scale [--cells 10] [--servers 10000] [SCENARIO …]

Simulated, with the product's own code of who belongs where and virtual time; ``world`` says what is assumed.
"""

from __future__ import annotations

import argparse

from benchmarks.cells_at_scale.scenarios import SCENARIOS, Outcome
from benchmarks.cells_at_scale.world import Fleet

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
    print(_line(["---"] * len(HEADER)))
    fleet = Fleet(options.cells, options.servers)
    for name in options.scenarios or SCENARIOS:
        print(_line(_cells(SCENARIOS[name](fleet), fleet)), flush=True)


def _cells(outcome: Outcome, fleet: Fleet) -> list[str]:
    spread = outcome.spread
    sizes = f"{min(spread):,} to {max(spread):,} in {len(spread)}"
    homeless = fleet.servers - sum(spread)
    served = _seconds(outcome.served) if outcome.served is not None else f"never: {homeless:,} find no room"
    moves = ", ".join(f"{count:,} {why}" for why, count in sorted(outcome.moves.items())) or "none"
    given_up = f"; {outcome.gave_up:,} times a server gave up" if outcome.gave_up else ""
    return [outcome.scenario, served, _seconds(outcome.rest), sizes, moves + given_up]


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.3g} s"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

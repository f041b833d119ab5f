"""``python -m tests.chaos``: break a real service at random, under load, and see what it kept of its promises."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.chaos.report import written
from tests.chaos.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--gateways", type=int, default=3)
    parser.add_argument("--servers", type=int, default=7)
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second")
    parser.add_argument("--pace", type=float, default=0.9, help="seconds between two faults, in the mean")
    parser.add_argument("--report", type=Path, help="file to write, as Markdown; to the terminal if unset")
    parser.add_argument("--folder", type=Path, help="for logs, which are kept; a temporary one if unset")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    outcome = asyncio.run(
        run(
            folder,
            seed=given.seed,
            faults=given.faults,
            gateways=given.gateways,
            servers=given.servers,
            rate=given.rate,
            pace=given.pace,
        )
    )
    (folder / "faults.log").write_text("\n".join(outcome.log))
    (folder / "requests.log").write_text("\n".join(map(repr, outcome.asked)))
    text = written(outcome)
    if given.report is None:
        print(text)
    else:
        given.report.write_text(text)
    for complaint in outcome.complaints:
        print(complaint, file=sys.stderr)
    print(
        f"{sum(outcome.faults.values())} faults, {outcome.requests} requests, {len(outcome.complaints)} complaints; "
        f"logs are in {folder}",
        file=sys.stderr,
    )
    return 1 if outcome.complaints else 0


if __name__ == "__main__":
    sys.exit(main())

"""Guidance on two servers: measured on this machine's processes, and simulated for the rest of the load.

python -m benchmarks.guidance [--only live swaps simulated] [--seeds 20] [--pictures 4] [--rounds 5]
                              [--output docs/results]
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from benchmarks.guidance import live, simulated, swaps
from benchmarks.scheduling.results import table

PARTS = ("live", "swaps", "simulated")
CASES = ((256, 12), (256, 24), (512, 12))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", type=int, default=20, help="of the simulation (default: 20)")
    parser.add_argument("--pictures", type=int, default=4, help="in a round (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="in which both take turns (default: 5)")
    parser.add_argument("--output", type=Path, default=Path("out/bench"), help="folder for guidance.md (%(default)s)")
    args = parser.parse_args()
    load = f"load average {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores at the start"
    told = {
        "live": (
            LIVE.format(load=load[0].upper() + load[1:]),
            live.HEAD,
            lambda: live.rows(CASES, args.pictures, args.rounds),
        ),
        "swaps": (SWAPS.format(load=load, swaps=swaps.SWAPS), swaps.HEAD, swaps.rows),
        "simulated": (SIMULATED.format(seeds=args.seeds), simulated.HEAD, lambda: simulated.rows(range(args.seeds))),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    kept = args.output / "guidance.json"
    found: dict[str, str] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for part in args.only:
        introduction, head, rows = told[part]
        lines = []
        for row in rows():
            print(*row, sep=" | ", flush=True)
            lines.append(row)
        found[part] = f"{introduction}\n{table(head, lines)}\n"
    kept.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = "\n".join([HEADING, *(found[part] for part in PARTS if part in found)])
    (args.output / "guidance.md").write_text(text, encoding="utf-8")


HEADING = """\
# Guidance on two servers

Written by `python -m benchmarks.guidance --output docs/results`, never by hand; with `--only` the other
parts are those of `guidance.json`.
"""
LIVE = """\
## One request alone

Measured on real processes, the bundled model in float32: two dit servers with one thread and a core each, a server with
the other roles, a gateway. Medians of the whole request at the HTTP API, encoding and decoding included, with
`SHARE_GUIDANCE` off and on in turns, and of the denoising in it, as `Server-Timing` says; {load}.
"The other busy" is of two requests at once, each on a dit server of its own. What they lose to each other in caches and
memory, halves of steps lose as well: about half of that column is what a swap that costs nothing would leave.
"""
SWAPS = """\
## What is swapped

Measured over loopback, {swaps} swaps of one tensor each way, both ends in one process; {load}.
"""
SIMULATED = f"""\
## What the others pay

Simulated: the real scheduler, {simulated.SERVERS} servers with all roles, half of the requests guided, about
{simulated.REQUESTS} a run; latency with `share_guidance` over that without, {{seeds}} paired seeds with their 95 %
bootstrap intervals. Below 1 is a gain.
"""

if __name__ == "__main__":
    main()

"""Measures a service under load. Open-loop arrivals leave at their time, however slow the answers are, and latencies
count from that time; --arrivals closed keeps --concurrency requests under way instead."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from itertools import islice, repeat
from pathlib import Path
from random import Random

from clients import terminal
from clients.address import ENVIRONMENT, add_url_option
from clients.api import open_client
from clients.load.arrivals import Limits, Planned, gamma, plan, read_trace
from clients.load.kinds import Kind, parse_kind, read_kinds
from clients.load.sending import Clock, Outcome, Sender, Tally, WallClock
from clients.load.summary import in_words, quantile, summarise
from clients.making import INTERRUPTED
from clients.terminal import StatusLine

REDRAW_SECONDS = 0.5
STREAM = "-"


def main(argv: list[str], program: str = "python -m clients") -> int:
    args = _parse(argv, program)
    try:
        requests = _requests(args)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    tally, interrupted = Tally(), False
    try:
        asyncio.run(_send(args, requests, tally))
    except KeyboardInterrupt:
        interrupted = True
    outcomes = sorted(tally.outcomes, key=lambda outcome: outcome.at)
    try:
        _report(args, outcomes)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if interrupted:
        print(f"interrupted; {tally.sent - len(outcomes)} requests were under way", file=sys.stderr)
        return INTERRUPTED
    if not any(outcome.succeeded for outcome in outcomes):
        print(f"none of the {len(outcomes)} requests succeeded", file=sys.stderr)
        return 1
    return 0


def _requests(args: argparse.Namespace) -> Iterator[Planned]:
    """Raises ``ValueError`` or ``OSError``."""
    base: dict[str, object] = {"prompt": args.prompt, "model": args.model}
    base = {name: value for name, value in base.items() if value is not None}
    limits = Limits(args.requests, args.duration)
    if args.arrivals == "trace":
        ours = (replace(planned, kind=_with_slo(planned.kind, args.slo)) for planned in read_trace(args.trace, base))
        within = (planned for planned in ours if limits.seconds is None or planned.at < limits.seconds)
        return islice(within, limits.requests)
    if limits == Limits():
        limits = Limits(requests=20)
    if args.mix:
        kinds = read_kinds(args.mix, base)
    else:
        kinds = [parse_kind({"size": args.size, "num_inference_steps": args.steps}, base, Path())]
    times: Iterable[float] = repeat(0.0)
    if args.arrivals != "closed":
        cv = args.cv if args.arrivals == "gamma" else 1.0
        times = gamma(args.rate, cv, Random(f"{args.arrival_seed}/arrivals"))  # noqa: S311 - it must repeat
    else:
        limits = replace(limits, seconds=None)  # the clock says when it is over, the plan cannot
    kinds = [_with_slo(kind, args.slo) for kind in kinds]
    return plan(times, kinds, limits, args.arrival_seed, args.seeded_share)


def _with_slo(kind: Kind, slos: dict[str, float]) -> Kind:
    """Its own, else that of its size, else that of all."""
    if kind.slo_seconds is not None:
        return kind
    return replace(kind, slo_seconds=slos.get(str(kind.call.fields.get("size")), slos.get("")))


async def _send(args: argparse.Namespace, requests: Iterator[Planned], tally: Tally) -> None:
    line = StatusLine(sys.stderr, live=terminal.is_live(sys.stderr, os.environ))
    async with open_client(args.timeout, args.url) as client:
        clock = WallClock()  # only now: the first request would leave late by what a client takes to open
        sender = Sender(client, args.url[0], tally, clock, args.timeout, args.retries)
        drawing = asyncio.create_task(_draw(line, tally, clock), name="progress")
        try:
            if args.arrivals == "closed":
                await sender.closed(requests, args.concurrency, args.duration)
            else:
                await sender.open(requests)
        finally:
            drawing.cancel()
            line.clear()


async def _draw(line: StatusLine, tally: Tally, clock: Clock) -> None:
    while line.live:
        line.show(progress(tally, clock.now()))
        await asyncio.sleep(REDRAW_SECONDS)


def progress(tally: Tally, now: float) -> str:
    good = sorted(outcome.seconds for outcome in tally.outcomes if outcome.succeeded)
    failed = len(tally.outcomes) - len(good)
    middle = f"  p50 {quantile(good, 0.5):.2f} s  p95 {quantile(good, 0.95):.2f} s" if good else ""
    under_way = tally.sent - len(tally.outcomes)
    return f"{now:.0f} s  sent {tally.sent}  under way {under_way}  done {len(good)}  failed {failed}{middle}"


def _report(args: argparse.Namespace, outcomes: Sequence[Outcome]) -> None:
    found = summarise(outcomes)
    if args.json:
        arguments = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        whole = {"arguments": arguments, "summary": found, "requests": [asdict(outcome) for outcome in outcomes]}
        text = json.dumps(whole, indent=1) + "\n"
        if str(args.json) == STREAM:
            sys.stdout.write(text)
        else:
            args.json.write_text(text, encoding="utf-8")
    if str(args.json) != STREAM:
        print(*in_words(found), sep="\n")
    if args.plot:
        from clients.load.plot import plot  # matplotlib is wanted by nobody else

        plot(outcomes, args.plot)


def _slo(given: str) -> dict[str, float]:
    """``SECONDS`` for all, ``SIZE=SECONDS`` for some."""
    pairs = [part.rpartition("=") for part in given.split(",")]
    return {size: _above_zero(seconds) for size, _, seconds in pairs}


def _above_zero(given: str) -> float:
    value = float(given)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{given} is not above 0")
    return value


def _count(given: str) -> int:
    return int(_above_zero(str(int(given))))


def _share(given: str) -> float:
    value = float(given)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{given} is not between 0 and 1")
    return value


def _parse(argv: list[str], program: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"{program} load", description=__doc__, epilog=ENVIRONMENT)
    add = parser.add_argument
    add_url_option(parser)
    add("--arrivals", choices=("poisson", "gamma", "closed", "trace"), help="default: trace with --trace, else poisson")
    add("--rate", type=_above_zero, default=1.0, help="requests per second, of poisson and gamma (default: 1)")
    add("--cv", type=_above_zero, default=2.0, help="of gamma's gaps: above 1 is burstier than poisson (default: 2)")
    add("--concurrency", type=_count, default=4, help="of closed (default: 4)")
    add("--trace", type=Path, help='JSON lines {"at": seconds, …fields of the request, image and mask: paths}')
    add("--requests", type=_count, help="at most (default: 20 without --duration; all of a trace)")
    add("--duration", type=_above_zero, help="seconds in which requests leave")
    add("--arrival-seed", type=int, default=0, help="the same seed makes the same load (default: 0)")
    add("--seeded-share", type=_share, default=1.0, help="of the requests have a seed (default: 1)")
    add("--mix", help="WEIGHT:SIZE/STEPS[+stream],… or a .toml or .json file; see docs/clients.md")
    add("--prompt", default="a large red circle in the center on a white background")
    add("--model")
    add("--size", default="256x256", help="without a mix (default: %(default)s)")
    add("--steps", type=_count, default=8, help="without a mix (default: %(default)s)")
    add("--slo", type=_slo, default={}, help="SECONDS and SIZE=SECONDS, with commas between")
    add("--retries", type=int, default=0, help="after the Retry-After of a refusal (default: 0)")
    add("--timeout", type=_above_zero, default=600.0, help="seconds (default: 600)")
    add("--json", type=Path, help="everything, to this file; - is stdout")
    add("--plot", type=Path, help="a picture, to this file; needs matplotlib")
    args = parser.parse_args(argv)
    args.arrivals = args.arrivals or ("trace" if args.trace else "poisson")
    if args.plot and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install 'disagfusion[bench]'")
    for path in filter(None, (args.json, args.plot)):
        if not path.parent.is_dir():
            parser.error(f"'{path.parent}' is no folder to write to")
    if (args.arrivals == "trace") != bool(args.trace):
        parser.error("--trace and --arrivals trace go together")
    return args

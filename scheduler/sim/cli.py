"""``python -m scheduler simulate`` and ``plan``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scheduler.cost.profile import ProfileError, load
from scheduler.roles.problem import Infeasible
from scheduler.sim import planner, report, suite
from scheduler.sim.engine import simulate
from scheduler.sim.planner import Offer, Slo
from scheduler.sim.policies import NAMES, named
from scheduler.sim.scenario_file import ScenarioError, read
from scheduler.sim.setup import ServerSetup
from scheduler.sim.workload import Kind, Phase, mix_of


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


def plan_main(argv: list[str], program: str = "python -m scheduler") -> int:
    """Find the cheapest fleet. Returns the exit code: 1 when there is none."""
    parser = _plan_parser(program)
    args = parser.parse_args(argv)
    try:
        offers = [_offer(text) for text in args.gpu]
        kind = Kind("request", args.size[1], args.size[0], args.steps, cfg=args.guidance)
        phase = Phase(args.seconds, mix_of(kind), rate=args.rate, cv=args.cv)
        found = planner.answer(offers, phase, Slo(args.slo, args.quantile), args.policies, tell=_say)
    except ProfileError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except ValueError as error:
        parser.error(str(error))
    if found is None:
        sys.stderr.write("no fleet within the limits keeps the SLO: allow more servers, or a longer latency\n")
        return 1
    _say(
        f"answer: {planner.describe(offers, found.counts)}, price {found.price:g}",
        f"  {100 * args.quantile:g} % within {found.latency:.2f} s; no more than {found.fluid_rate:.3g} requests/s",
    )
    return 0


def _plan_parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{program} plan", description="How many of which GPU for this load at this SLO?"
    )
    parser.add_argument(
        "--gpu",
        action="append",
        required=True,
        metavar="PROFILE[:PRICE[:MOST]]",
        help="a device class, repeatable: a profile of the project or a file, price per server, most servers",
    )
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--slo", type=float, required=True, help="latency in seconds")
    parser.add_argument("--quantile", type=float, default=0.99, help="share within it (default: %(default)s)")
    parser.add_argument("--size", type=_size, default=(1024, 1024), help="WIDTHxHEIGHT (default: 1024x1024)")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: %(default)s)")
    parser.add_argument("--guidance", action="store_true", help="two forward passes per step")
    parser.add_argument("--cv", type=float, default=1.0, help="variation of the gaps between arrivals; 1: Poisson")
    parser.add_argument("--seconds", type=float, default=600.0, help="simulated per fleet (default: %(default)s)")
    parser.add_argument("--policies", choices=NAMES, default="elastic", help="(default: %(default)s)")
    return parser


def _offer(text: str) -> Offer:
    name, _, rest = text.partition(":")
    price, _, most = rest.partition(":")
    profile = load(Path(name)) if name.endswith(".toml") else suite.bundled_profile(name)
    try:
        return Offer(ServerSetup(f"{Path(name).name}-", profile), float(price or 1), int(most or 16))
    except ValueError as error:
        raise ValueError(f"{text!r} is not PROFILE[:PRICE[:MOST]], for example flux.1-dev-h100:2.5:16") from error


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write WIDTHxHEIGHT, for example 1024x1024")
    return int(width), int(height)


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))

"""``python -m scheduler plan``: options in, the cheapest fleet out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scheduler.cost.profile import GIGABYTE, Profile, ProfileError, bundled, load
from scheduler.sim import planner, suite
from scheduler.sim.bound import with_best_roles
from scheduler.sim.planner import Offer, Slo
from scheduler.sim.policies import NAMES
from scheduler.sim.setup import ServerSetup
from scheduler.sim.workload import Kind, Phase, mix_of
from wire.types import Role

BASELINE = " monolithic"
"""Ends the device class of profiles that stand for another way of serving, with which ours are compared."""


class PlanError(ValueError):
    """An option cannot be used; the text names it."""


def main(argv: list[str], program: str = "python -m scheduler") -> int:
    """Find the cheapest fleet. Returns the exit code: 1 when there is none."""
    parser = _parser(program)
    args = parser.parse_args(argv)
    try:
        more = {"cfg": args.guidance, "upscaled": args.upscale, "step_cache": args.step_cache}
        kind = Kind("request", args.size[1], args.size[0], args.steps, **more)
        offers = _offers(args, kind)
        seconds = args.seconds or (planner.long_enough(args.rate) if args.rate > 0 else 1.0)
        phase = Phase(seconds, mix_of(kind), rate=args.rate, cv=args.cv)
        slo = Slo(args.slo, args.quantile)
        large = planner.too_large(offers, [*dict.fromkeys(work.role for work in kind.works())])
        if large:
            sys.stderr.write("".join(f"{line}\n" for line in large))
            sys.stderr.write("offer a larger device (--gpu), or weights in fewer bits or offloaded (--memory)\n")
            return 1
        found = planner.answer(offers, phase, slo, args.policies, tell=_say)
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
        f"  {100 * args.quantile:g} % within {found.latency:.2f} s, {found.forecast.mean:.2f} s on average; "
        f"no more than {found.fluid_rate:.3g} requests/s",
        *(f"  {line}" for line in planner.placement(found.servers)),
    )
    for load_ in args.loads:
        at = replace(phase, rate=load_ * found.fluid_rate, seconds=planner.long_enough(load_ * found.fluid_rate))
        seen = planner.forecast(with_best_roles(found.servers, at), at, slo, args.policies)
        _say(
            f"  at {at.rate:.3g} requests/s ({load_:.0%}): {100 * args.quantile:g} % within {seen.latency:.2f} s, "
            f"{seen.mean:.2f} s on average"
        )
    return 0


def _offers(args: argparse.Namespace, kind: Kind) -> list[Offer]:
    """Raises ``ProfileError`` or ``PlanError``."""
    if not args.gpu and not args.model:
        raise PlanError("which devices? name profiles with --gpu, or a model whose profiles are all tried with --model")
    offers = [_offer(text) for text in args.gpu or ()] or _all_of(args.model)
    if args.model:
        for setup in (offer.setup for offer in offers):
            if not _is_of(setup.profile, args.model):
                device = setup.profile.device_class
                raise PlanError(f"--gpu: a profile of {setup.model} on {device}, not of {args.model}")
    for number, offer in enumerate(offers, start=1):  # one profile may be offered with two sizes of memory
        setup = replace(offer.setup, name=f"{number}.{offer.setup.name}")
        offers[number - 1] = replace(offer, setup=_with_memory(setup, args.memory, kind) if args.memory else setup)
    if kind.upscaled and not any(Role.UPSCALER in offer.setup.profile.roles for offer in offers):
        raise PlanError(
            "--upscale: no profile offered has a section [upscaler]; add one to a "
            "profile of yours (docs/profiles.md), and name its file with --gpu"
        )
    return offers


def _all_of(model: str) -> list[Offer]:
    """One for each device of which the project has a profile."""
    known = [profile for profile in bundled() if not profile.device_class.endswith(BASELINE)]
    found = [profile for profile in known if _is_of(profile, model)]
    if not found:
        names = ", ".join(sorted({profile.model.name for profile in known}))
        raise PlanError(f"--model: no profile of {model!r} comes along; there are {names}. Measure one with "
                        "'disagfusion profile', and name its file with --gpu")  # fmt: skip
    return [Offer(ServerSetup(f"{profile.device_class.split()[-1].lower()}-", profile), most=16) for profile in found]


def _is_of(profile: Profile, model: str) -> bool:
    return profile.model.name.lower() == model.rpartition("/")[2].lower()


def _with_memory(setup: ServerSetup, path: Path, kind: Kind) -> ServerSetup:
    """Raises ``PlanError``."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        model, weights = str(told["model"]), {Role(role): int(count) for role, count in told["weight_bytes"].items()}
        copies = {Role(role): float(seconds) for role, seconds in told.get("copy_seconds", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"--memory: {path} is not what 'disagfusion memory --output' writes ({error})") from error
    if not _is_of(setup.profile, model):
        raise PlanError(f"--memory: {path} is of {model}, and the profile of {setup.model}")
    profile = planner.waiting_for_weights(planner.lighter(setup.profile, weights), copies, kind.works())
    return replace(setup, profile=profile)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{program} plan",
        description="Which GPUs, how many, and which roles where, for this load at this SLO?",
    )
    parser.add_argument("--model", help="of which profiles come along: every device that has one is tried")
    parser.add_argument(
        "--gpu",
        action="append",
        metavar="PROFILE[:PRICE[:MOST[:GB]]]",
        help="a device class, repeatable: a profile of the project or a file, price per server, most servers, memory",
    )
    parser.add_argument(
        "--memory", type=Path, metavar="FILE", help="what the roles take, from 'disagfusion memory --output'"
    )
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--slo", type=float, required=True, help="latency in seconds")
    parser.add_argument("--quantile", type=float, default=0.99, help="share within it (default: %(default)s)")
    parser.add_argument("--size", type=_size, default=(1024, 1024), help="WIDTHxHEIGHT (default: 1024x1024)")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: %(default)s)")
    parser.add_argument("--guidance", action="store_true", help="two forward passes per step")
    parser.add_argument(
        "--step-cache", default="", metavar="LEVEL", help="at which steps reuse what earlier ones computed"
    )
    parser.add_argument("--upscale", action="store_true", help="each picture goes through the upscaler")
    parser.add_argument("--cv", type=float, default=1.0, help="variation of the gaps between arrivals; 1: Poisson")
    parser.add_argument(
        "--seconds", type=float, help=f"simulated per fleet (default: {planner.LEAST_SECONDS:g}, or the time of "
        f"{planner.LEAST_REQUESTS} requests)",
    )  # fmt: skip
    parser.add_argument(
        "--loads",
        type=_loads,
        default=(),
        metavar="SHARE,…",
        help="of what the answer can serve: its latency there too",
    )
    parser.add_argument("--policies", choices=NAMES, default="elastic", help="(default: %(default)s)")
    return parser


def _offer(text: str) -> Offer:
    name, _, rest = text.partition(":")
    price, _, rest = rest.partition(":")
    most, _, memory = rest.partition(":")
    profile = load(Path(name)) if name.endswith(".toml") else suite.bundled_profile(name)
    try:
        nbytes = int(float(memory) * GIGABYTE) if memory else None
        return Offer(
            ServerSetup(f"{Path(name).name}-", profile, memory_bytes=nbytes), float(price or 1), int(most or 16)
        )
    except ValueError as error:
        raise PlanError(
            f"{text!r} is not PROFILE[:PRICE[:MOST[:GB]]], for example flux.1-dev-h100:2.5:16:80"
        ) from error


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write WIDTHxHEIGHT, for example 1024x1024")
    return int(width), int(height)


def _loads(text: str) -> Sequence[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [0.0]
    if not all(0 < each < 1 for each in found):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of shares between 0 and 1 such as 0.5,0.8")
    return found


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()

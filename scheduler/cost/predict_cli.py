"""``python -m scheduler predict``: what a request would cost, and how the figure came about."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from scheduler.cost.model import CostModel
from scheduler.cost.profile import ProfileError, bundled
from scheduler.cost.work import Target, Work
from wire.references import References
from wire.types import REQUIRED, Role


def main(argv: list[str], program: str = "python -m scheduler") -> int:
    """Print one prediction per role. Returns the process's exit code; usage errors exit with 2 as argparse does."""
    parser = _parser(program)
    args = parser.parse_args(argv)
    try:
        model = CostModel([] if args.no_bundled else bundled())
        for path in args.profile:
            model.load_profile(path)
        lines = _predict(model, args)
    except ProfileError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _predict(model: CostModel, args: argparse.Namespace) -> list[str]:
    target = Target.of(args.model, args.device, args.precision)
    total, lines = 0.0, []
    for role in args.role or REQUIRED:
        work = _work(model, target, Role(role), args)
        head, *rest = model.explain(work, target)
        lines += [head, *(f"    {line}" for line in rest)]
        total += model.seconds(work, target)
    return [*lines, f"in all: {total:.4g} s of device time"]


def _work(model: CostModel, target: Target, role: Role, args: argparse.Namespace) -> Work:
    shape = model.shape(target)
    guidance = shape.default_guidance if args.guidance is None else args.guidance
    width, height = args.size
    rule = shape.references or References()
    encoded = sum(math.prod(rule.size(picture, args.size)) for picture in args.upload)
    return Work(
        role,
        height=height,
        width=width,
        steps=(shape.default_steps if args.steps is None else args.steps) if role is Role.DIT else 1,
        cfg=shape.guidance_passes == 2 and guidance > 1,
        text_tokens=args.text_tokens if role is Role.ENCODER else 0,
        image_pixels=encoded if role is Role.ENCODER else 0,
        picture_tokens=sum(map(rule.prompt_tokens, args.upload)) if role in (Role.ENCODER, Role.DIT) else 0,
        reference_pixels=encoded if role is Role.DIT and rule.in_sequence else 0,
        batch=args.batch,
    )


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write WIDTHxHEIGHT, for example 1024x1024")
    return int(width), int(height)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"{program} predict", description=__doc__)
    parser.add_argument("--model", required=True, help="for example black-forest-labs/FLUX.1-dev")
    parser.add_argument("--device", required=True, help='device class, for example "NVIDIA H100"')
    parser.add_argument("--precision", default="bfloat16", help="dtype of the weights (default: %(default)s)")
    parser.add_argument("--size", type=_size, default=(1024, 1024), help="WIDTHxHEIGHT in pixels (default: 1024x1024)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the model's)")
    parser.add_argument("--text-tokens", type=int, default=0, help="length of the prompt (default: the model's)")
    parser.add_argument(
        "--upload", type=_size, action="append", default=[], help="WIDTHxHEIGHT of an uploaded picture; repeatable"
    )
    parser.add_argument("--batch", type=int, default=1, help="equal jobs in one batch (default: 1)")
    parser.add_argument(
        "--role",
        action="append",
        choices=[role.value for role in Role],
        help="repeatable; default: those of every model",
    )
    parser.add_argument("--profile", type=Path, action="append", default=[], help="a further profile file; repeatable")
    parser.add_argument("--no-bundled", action="store_true", help="ignore the profiles that come with the project")
    return parser

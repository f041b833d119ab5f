"""The options that ``generate`` and ``edit`` share, and what becomes of them in a request."""

from __future__ import annotations

import argparse
from pathlib import Path

from clients.address import ENVIRONMENT, add_url_option

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
TEXTS = ("model", "size", "negative_prompt", "quality", "step_cache")
NUMBERS = {"seed": int, "guidance_scale": float, "n": int}
PREVIEWS = 2
"""Of each picture, where somebody watches."""


def parser(program: str, description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=program, description=description, epilog=ENVIRONMENT)
    made.add_argument("prompt", nargs="?")
    made.add_argument("--prompt", dest="named_prompt", metavar="PROMPT", help="the same")
    made.add_argument("-o", "--output", type=Path, help="its ending sets the format (default: picture.png)")
    made.add_argument("--format", choices=sorted({*FORMATS.values()}), help="for an output without such an ending")
    add_url_option(made)
    made.add_argument("--model")
    made.add_argument("--size", help="WIDTHxHEIGHT in pixels")
    made.add_argument("--negative-prompt")
    made.add_argument("--quality")
    made.add_argument("--step-cache", metavar="LEVEL", help="steps reuse what earlier ones computed, as far as it says")
    made.add_argument("--steps", "--num-inference-steps", dest="num_inference_steps", metavar="N", type=int)
    for name, kind in NUMBERS.items():
        made.add_argument(f"--{name.replace('_', '-')}", type=kind)
    made.add_argument("--no-stream", action="store_true", help="one answer, without progress")
    made.add_argument(
        "--partial",
        type=int,
        choices=range(4),
        help=f"previews of each picture, in the terminal or in OUTPUT.partial.png (default: {PREVIEWS} in a terminal)",
    )
    made.add_argument("--json", action="store_true", help="what was made and how long it took, on stdout")
    made.add_argument("--timeout", type=float, default=600.0, help="seconds")
    return made


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Ends the program with status 2 when something is missing or contradicts."""
    args = parser.parse_args(argv)
    if (args.prompt is None) == (args.named_prompt is None):
        parser.error("one prompt is needed")
    args.prompt = args.named_prompt if args.prompt is None else args.prompt
    if args.partial and args.no_stream:
        parser.error("--partial needs a stream: leave --no-stream out")
    args.output = args.output or Path(f"picture.{args.format or 'png'}")
    named = FORMATS.get(args.output.suffix.lower())
    if named is None and args.format is None:
        parser.error(f"'{args.output}' ends in none of {', '.join(FORMATS)}, and there is no --format")
    if named and args.format and named != args.format:
        parser.error(f"'{args.output}' does not end as --format {args.format} does")
    args.format = args.format or named
    if not args.output.parent.is_dir():
        parser.error(f"'{args.output.parent}' is no folder to write to")
    return args


def fields(args: argparse.Namespace, *, watched: bool) -> dict[str, object]:
    """Of the request's body; previews that nobody asked for or watches are not made."""
    sent = {name: getattr(args, name) for name in ("prompt", *TEXTS, "num_inference_steps", *NUMBERS)}
    body = {name: value for name, value in sent.items() if value is not None} | {"output_format": args.format}
    if not args.no_stream:
        partial = args.partial if args.partial is not None else PREVIEWS if watched else 0
        body |= {"stream": True, "partial_images": partial}
    return body

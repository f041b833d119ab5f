"""What makes steps faster, and what it changes: writes docs/results/faster.json and faster.md.

python -m benchmarks.faster [--only step-caches,compile,attention] [--pictures 16] [--output docs/results]

On one core, with the bundled model. Speed is processor time of the exact denoising over that of the other, in one run,
picture by picture in turns; errors are differences of the decoded pictures. A part measured anew replaces its old
figures in the files, and the others stay.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.faster import attention, compiled, document, step_caches
from wire.params import ImageParams

SIZES = {"step-caches": ((256, 12), (256, 20)), "compile": ((256, 12),), "attention": ((256, 12), (512, 12))}
"""Part → edges in pixels, and steps."""


def main(arguments: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    path = args.output / "faster.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for part in args.only:
        kept[part] = {"machine": _machine(), "pictures": args.pictures, "cases": PARTS[part](args.model, args.pictures)}
        args.output.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept, indent=1) + "\n")
        path.with_suffix(".md").write_text(document.render(kept))
    print(f"{path.with_suffix('.md')} is written.")


def _step_caches(model: str, pictures: int) -> list[dict[str, Any]]:
    return [
        {"side": side, "steps": steps, "rows": step_caches.measure(model, pictures, _params(side, steps))}
        for side, steps in SIZES["step-caches"]
    ]


def _compile(model: str, pictures: int) -> list[dict[str, Any]]:
    return [dict(compiled.measure(model, side, steps, pictures)) for side, steps in SIZES["compile"]]


def _attention(model: str, pictures: int) -> list[dict[str, Any]]:
    return [
        {"side": side, "steps": steps, "rows": attention.measure(model, pictures, _params(side, steps))}
        for side, steps in SIZES["attention"]
    ]


def _params(side: int, steps: int) -> ImageParams:
    return ImageParams(width=side, height=side, num_inference_steps=steps, guidance_scale=3.0)


PARTS: dict[str, Callable[[str, int], list[dict[str, Any]]]] = {
    "step-caches": _step_caches,
    "compile": _compile,
    "attention": _attention,
}


def _machine() -> str:
    return f"{platform.machine()}, one thread, torch {torch.__version__}"


def _parts(given: str) -> list[str]:
    names = given.split(",")
    if strange := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"{strange[0]!r} is no part; {', '.join(PARTS)} are")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_parts, default=list(PARTS), help=f"of {','.join(PARTS)} (default: all)")
    parser.add_argument("--model", default="tiny-shapes", help="of Z-Image's kind (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=16, help="of each setting (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder (default: %(default)s)")
    return parser


if __name__ == "__main__":
    main()

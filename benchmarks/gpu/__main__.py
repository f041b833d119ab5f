"""Models of full size on one GPU: stage times as cost profiles, batches, prefetch against none, peak memory, what
makes steps faster, and what makes weights lighter.

make bench-gpu PYTHON=python3 OUT=out/bench-gpu
python -m benchmarks.gpu [--models z-image,flux] [--seconds 420] [--output out/bench-gpu]

Weights are random and made on the device from the published configurations; nothing is downloaded. What was measured is
on disk after every part (results.jsonl, results.md, a profile per model). A part for which too little time is left is
named and left out.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from benchmarks.gpu.faster import LEVELS
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.parts import FULL, TINY, Subject
from benchmarks.gpu.records import Records
from benchmarks.gpu.weights import random_weights, write_folder
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.profiling.command import library_versions
from stage_server.settings import EngineSettings
from stage_server.startup import make_real_engine
from wire.types import REQUIRED

NEEDS = {
    "stages": 120.0,
    "batches": 70.0,
    "overlap": 30.0,
    "moves": 40.0,
    "step_caches": 30.0,
    "attention": 30.0,
    "compiled": 90.0,
    "formats": 120.0,
    "offloading": 60.0,
}
"""Seconds of the larger model on an H100, estimated: with less left a part is not begun."""
HOST_BYTES = 1 << 40
"""No bound: what roles give up stays in host memory, since it can be made again but not read again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a part failed; one that was left out is no failure."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch finds no CUDA device")
    deadline = monotonic() + args.seconds
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    machine = args.device if args.device == "cpu" else torch.cuda.get_device_name(args.device)
    records = Records(args.output, f"# {machine}, random weights\n\n{library_versions()}")
    with tempfile.TemporaryDirectory(prefix="disagfusion-gpu-") as name, random_weights(args.device):
        for key in args.models:
            model = MODELS[key](args.tiny)
            folder = write_folder(model, Path(name) / model.name)
            settings = EngineSettings(
                model=str(folder),
                device=args.device,
                weight_cache_bytes=HOST_BYTES,
                step_cache=LEVELS,
                compile=not args.tiny,
            )
            engine = make_real_engine(settings, dict.fromkeys(REQUIRED, max(FULL.batches)))
            extent = TINY if args.tiny else FULL
            subject = Subject(engine, model.name, extent, args.repeats, partial(_further, settings), engine.compiler)
            _measure(subject, records, args.output, deadline)
            engine.close()
            gc.collect()
    print(records.write_tables())
    print(f"Tables, lines and profiles are in {args.output}.")
    return 1 if records.failed() else 0


def _further(settings: EngineSettings, changed: Mapping[str, Any]) -> DiffusersEngine:
    """Raises ``LoadError``."""
    plain = {"compile": False, "step_cache": {}, "weight_cache_bytes": 0}
    return make_real_engine(settings.model_copy(update={**plain, **changed}), {})


def _measure(subject: Subject, records: Records, folder: Path, deadline: float) -> None:
    for part, needs in NEEDS.items():
        left = deadline - monotonic()
        if left < needs:
            records.add(part, subject.name, skipped=f"{left:.0f} s were left, it may take {needs:g}")
            continue
        began = monotonic()
        try:
            getattr(subject, part)(records, folder)
        except Exception:  # such a machine is had once and for minutes: the other parts are worth having all the same
            records.add(part, subject.name, error=traceback.format_exc(limit=-3))
        logging.info("%s of %s: %.0f s", part, subject.name, monotonic() - began)
        records.write_tables()


def _models(given: str) -> list[str]:
    names = given.split(",")
    if strange := [name for name in names if name not in MODELS]:
        raise argparse.ArgumentTypeError(f"{strange[0]!r} is no model; {', '.join(MODELS)} are")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=_models, default=list(MODELS), help=f"of {','.join(MODELS)} (default: all)")
    parser.add_argument("--device", default="cuda:0", help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("out/bench-gpu"), help="folder (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=420.0, help="in all (default: %(default)g)")
    parser.add_argument("--repeats", type=int, default=3, help="of each job; the median counts (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="tiny models at small sizes, to test the benchmark itself")
    return parser


if __name__ == "__main__":
    sys.exit(main())

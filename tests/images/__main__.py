"""``make images``: both targets of the Dockerfile built, started, and asked for a picture; status 1 if anything failed.

Needs root, buildah, debootstrap, util-linux and iproute2, and none of the project's packages. The base is a bare
Debian, the same release as here, from the mirror that apt has here; pip in the builds is set up as the one here is.
Nothing stays behind.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.images import sources, trial
from tests.images.buildah import Buildah, Failed, image

ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if wrong := sources.missing():
        print(f"make images: {wrong}", file=sys.stderr)
        return 1
    try:
        with tempfile.TemporaryDirectory(prefix="disagfusion-images-") as folder, Buildah(Path(folder)) as buildah:
            _build(buildah, Path(folder), options.base, options.torch_index)
            trial.alone(Path(folder))
    except Failed as error:
        print(f"make images: {error}", file=sys.stderr)
        return 1
    return 0


def _build(buildah: Buildah, folder: Path, base: Path | None, torch_index: str) -> None:
    if base is None:
        base = folder / "base"
        began = time.monotonic()
        sources.bare_system(base)
        _say(f"base system: {time.monotonic() - began:.0f} s")
    buildah.image_of(base, "localhost/base")
    mounts = sources.pip_mounts(folder)
    for target in ("gateway", "stage"):
        began = time.monotonic()
        given = {"BASE": "localhost/base"}
        if target == "stage" and torch_index:
            given["TORCH_INDEX"] = torch_index
        buildah.build(ROOT, target, image(target), given, mounts)
        megabytes = buildah.size(image(target)) / 1e6
        _say(f"{target}: built in {time.monotonic() - began:.0f} s, {megabytes:.0f} MB")


def _say(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.images", description="Build and try both container images.")
    parser.add_argument("--base", type=Path, help="a system that debootstrap made, instead of a new one")
    parser.add_argument("--torch-index", default="", help="the Dockerfile's TORCH_INDEX")
    return parser


if __name__ == "__main__":
    sys.exit(main())

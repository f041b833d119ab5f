"""Row 11: what writing a picture of 1024² takes, ours beside Pillow's, in processor time of one thread.

The picture is photo-like: smooth areas and edges of waves in three channels, with a sensor's noise over it. Ours and
Pillow's take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from time import thread_time

import numpy as np
from PIL import Image

from benchmarks.rows import Goal, Row, show
from stage_server.engine.pictures import encode
from stage_server.engine.png import COMPRESSOR

SIDE = 1024
SEEDS = (0, 1, 2)
ROUNDS = 5
COMMAND = "python -m benchmarks.codecs"


def photo_like(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    a, b, c = rng.uniform(2, 12, 3)
    waves = np.stack(
        [np.sin(a * columns + b * rows), np.cos(b * rows - c * columns), np.sin(c * rows * columns * 2)], -1
    )
    return Image.fromarray(np.clip(128 + 90 * waves + rng.normal(0, 3, waves.shape), 0, 255).astype(np.uint8))


def rows() -> list[Row]:
    pictures = [photo_like(seed) for seed in SEEDS]
    ours = f"ours ({COMPRESSOR})"
    seconds, nbytes = _compared(pictures, {ours: lambda p: encode(p, "png", 100), "Pillow level 1": _by_pillow})
    lost = sum(_decoded(encode(picture, "png", 100)) != picture.tobytes() for picture in pictures)
    webp, webp_bytes = _compared(pictures, {"method 0": lambda p: encode(p, "webp", 90), "method 4": _webp})
    return [
        _row("PNG 1024², processor time of Pillow level 1 over ours", ours,
             seconds["Pillow level 1"] / seconds[ours], "×", Goal(">=", 7.0)),
        _row("PNG 1024², processor time", ours, seconds[ours] * 1e3, "ms"),
        _row("PNG 1024², processor time", "Pillow level 1", seconds["Pillow level 1"] * 1e3, "ms"),
        _row("PNG 1024², bytes over Pillow level 1's", ours,
             nbytes[ours] / nbytes["Pillow level 1"], "×", Goal("<=", 1.0)),
        _row("PNG 1024², pictures that do not come back to the bit", ours, lost, "pictures", Goal("<=", 0)),
        _row("WebP 1024², processor time of method 4 over ours", "method 0", webp["method 4"] / webp["method 0"], "×"),
        _row("WebP 1024², bytes over method 4's", "method 0", webp_bytes["method 0"] / webp_bytes["method 4"], "×"),
    ]  # fmt: skip


def _compared(
    pictures: list[Image.Image], encoders: dict[str, Callable[[Image.Image], bytes]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Least seconds of ``ROUNDS`` and bytes, each the mean over the pictures."""
    seconds, nbytes = dict.fromkeys(encoders, 0.0), dict.fromkeys(encoders, 0.0)
    for picture in pictures:
        best = dict.fromkeys(encoders, float("inf"))
        for _ in range(ROUNDS):
            for name, write in encoders.items():
                began = thread_time()
                data = write(picture)
                best[name] = min(best[name], thread_time() - began)
                nbytes[name] += len(data) / ROUNDS / len(pictures)
        for name in encoders:
            seconds[name] += best[name] / len(pictures)
    return seconds, nbytes


def _by_pillow(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _webp(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=90, method=4)
    return buffer.getvalue()


def _decoded(data: bytes) -> bytes:
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def _row(measure: str, case: str, value: float, unit: str, goal: Goal | None = None) -> Row:
    return Row(11, measure, case, value, unit, goal, "none", COMMAND, SEEDS)


def main() -> None:
    show(rows())


if __name__ == "__main__":
    main()

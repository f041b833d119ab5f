"""How long the gateway's event loop waits while its two processes decode pictures of 50 megapixels that clients sent.

python -m benchmarks.decode_lag [--rounds 2]

Two figures: by how much a sleep of 5 ms on the loop is late, and that without the time in which the loop's thread could
have run and had no core, which Linux counts: what is left is the wait for Python's interpreter lock.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import threading
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image

from gateway.decoding.decoders import DECODING_AT_ONCE, Decoders
from gateway.decoding.pictures import Decoding
from gateway.settings import Settings

WIDTH, HEIGHT = 8000, 6250
TICK_SECONDS = 0.005

Picture = tuple[bytes, Decoding]


def pictures() -> Mapping[str, Picture]:
    """What to decode, by its name."""
    rules = Settings()
    image, mask = (
        Decoding(param, 1 << 30, rules.max_image_pixels, rules.max_pixels, alpha_is_mask=param == "image")
        for param in ("image", "mask")
    )
    slope = np.add.outer(np.arange(HEIGHT) // 25, np.arange(WIDTH) // 32).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 64, (HEIGHT, WIDTH, 3), np.uint8)
    smooth = Image.fromarray(np.dstack([slope] * 3))
    clear = Image.merge("RGBA", (*smooth.split(), Image.fromarray(slope)))
    return {
        "PNG, 8-bit RGB": (_file(smooth), image),
        "PNG, the same with noise": (_file(Image.fromarray(np.asarray(smooth) ^ noise)), image),
        "PNG, with alpha": (_file(clear), image),
        "PNG, palette": (_file(smooth.quantize(64), transparency=0), image),
        "PNG, 16-bit grey": (_file(Image.fromarray(slope.astype(np.uint16) << 8)), image),
        "PNG, a mask": (_file(clear), mask),
        "JPEG": (_file(smooth, "JPEG"), image),
        "WebP": (_file(smooth, "WEBP", quality=80, method=0), image),
    }


def _file(picture: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"compress_level": 1} if kind == "PNG" else {}) | options)
    return buffer.getvalue()


def _coreless_seconds() -> float:
    """For how long the calling thread could have run and had no core."""
    try:
        schedstat = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text(encoding="ascii")
    except FileNotFoundError:
        return 0.0
    return int(schedstat.split()[1]) / 1e9


async def lags(picture: Picture, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds by which each tick was late; and of these, without those in which there was no core."""
    late, locked = [], []
    with closing(Decoders(picture[1].max_pixels)) as decoders:
        tasks = [asyncio.create_task(decoders.decode(*picture)) for _ in range(rounds * DECODING_AT_ONCE)]
        while not all(task.done() for task in tasks):
            coreless, start = _coreless_seconds(), perf_counter()
            await asyncio.sleep(TICK_SECONDS)
            late.append(perf_counter() - start - TICK_SECONDS)
            locked.append(max(0.0, late[-1] - (_coreless_seconds() - coreless)))
        await asyncio.gather(*tasks)
    return late, locked


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode_lag", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2, help="pictures for each process (%(default)s)")
    rounds = parser.parse_args().rounds
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; ms: p50 / p99 / most")
    for name, picture in pictures().items():
        late, locked = asyncio.run(lags(picture, rounds))
        print(f"{name:26} late {_told(late)}   for the lock {_told(locked)}", flush=True)


def _told(seconds: list[float]) -> str:
    return " / ".join(f"{1000 * value:5.1f}" for value in np.quantile(seconds, (0.5, 0.99, 1.0)))


if __name__ == "__main__":
    main()

"""Pictures of one engine, the processor time of their denoising, and how far two are from each other."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from stage_server.engine.base import StageJob, Unwatched
from stage_server.engine.diffusers_engine import DiffusersEngine
from wire.params import ImageParams
from wire.types import REQUIRED, Role

PROMPTS = (
    "a large red circle in the center on a white background",
    "a green heart to the left of an orange square on white",
    "a small yellow star at the top on a purple background",
    "a blue triangle on a black background",
    "an orange ring above a blue star on white",
    "a cyan diamond at the bottom on a gray background",
    "a white cross in the center on a red background",
    "a large pink heart on a green background",
)
"""Of the picture in the README."""

Pixels = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Drawn:
    seconds: float
    """Of processor time, for the denoising."""
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class Compared:
    """Ways of drawing against the exact one, over the same prompts and seeds."""

    speed: float
    """Processor time of the exact denoising over this one's."""
    mean: float
    """Difference of a channel's value, of 255, over all pixels and pictures."""
    median_picture: float
    """The same of the picture in the middle."""
    worst_picture: float
    largest: int
    """Of any value."""
    equal: int
    """Pictures that are the same to the bit."""


class Drawing:
    """``encoder``: what it makes for each prompt is made once."""

    def __init__(self, engine: DiffusersEngine, params: ImageParams, prompts: Sequence[str] = PROMPTS) -> None:
        self._engine = engine
        self._params = [msgspec.structs.replace(params, prompt=prompt, seed=1) for prompt in prompts]
        self._encoded: list[Mapping[str, Any]] = [
            engine.run(StageJob(Role.ENCODER, each), {}, Unwatched()) for each in self._params
        ]

    def __len__(self) -> int:
        return len(self._params)

    def draw(self, index: int, *, fast: bool = False, engine: DiffusersEngine | None = None, **params: Any) -> Drawn:
        """The picture of prompt number ``index``, denoised by ``engine`` or by the one that encoded it."""
        given, encoded = msgspec.structs.replace(self._params[index], **params), self._encoded[index]
        began = time.process_time()
        job = StageJob(Role.DIT, given, fast=fast)
        denoised = (engine or self._engine).run(job, encoded[Role.DIT], Unwatched())
        seconds = time.process_time() - began
        inputs = {**encoded.get(Role.DECODER, {}), **denoised[Role.DECODER]}
        made = self._engine.run(StageJob(Role.DECODER, self._params[index]), inputs, Unwatched())["image"]["image"]
        assert isinstance(made, bytes)
        return Drawn(seconds, np.asarray(Image.open(io.BytesIO(made)).convert("RGB")).astype(np.int16))


def compare(pairs: Iterable[tuple[Drawn, Drawn]]) -> Compared:
    """(Exact, the other), a pair for each picture."""
    found = list(pairs)
    errors = [np.abs(exact.pixels - other.pixels) for exact, other in found]
    means = sorted(float(error.mean()) for error in errors)
    return Compared(
        speed=sum(exact.seconds for exact, _ in found) / sum(other.seconds for _, other in found),
        mean=sum(means) / len(means),
        median_picture=means[len(means) // 2],
        worst_picture=means[-1],
        largest=max(int(error.max()) for error in errors),
        equal=sum(not error.any() for error in errors),
    )


def opened(model: str, **options: Any) -> DiffusersEngine:
    """All roles of ``model``, on one thread of the processor."""
    torch.set_num_threads(1)
    engine = DiffusersEngine(model, **options)
    engine.set_roles(frozenset(REQUIRED))
    return engine

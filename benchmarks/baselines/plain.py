"""diffusers behind FastAPI in one process, with a queue and micro-batches: a baseline of row 8.

python -m benchmarks.baselines.plain PORT [--threads N]

Requests wait in order of arrival. A batch is the one that came first, and those waiting that ask for the same size,
steps and guidance, up to ``MOST``; it waits for nobody. Pictures are encoded and answered while the next computes.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import uvicorn
from diffusers import ZImagePipeline
from fastapi import FastAPI, HTTPException
from PIL import Image

from benchmarks.baselines.asked import MODEL, MOST, Body

QUEUE = 1000


@dataclass(frozen=True, eq=False)
class Waiting:
    body: Body
    drawn: asyncio.Future[Image.Image] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Drawer:
    """Owns the pipeline, which one thread at a time uses."""

    def __init__(self) -> None:
        self._pipeline = ZImagePipeline.from_pretrained(MODEL, dtype=torch.float32)
        self._pipeline.set_progress_bar_config(disable=True)
        self._queue: list[Waiting] = []
        self._came = asyncio.Event()

    async def draw(self, body: Body) -> Image.Image:
        if len(self._queue) >= QUEUE:
            raise HTTPException(503, "too many requests are waiting")
        waiting = Waiting(body)
        self._queue.append(waiting)
        self._came.set()
        try:
            return await waiting.drawn
        finally:
            if waiting in self._queue:
                self._queue.remove(waiting)

    async def work(self) -> None:
        while True:
            await self._came.wait()
            batch = [each for each in self._queue if each.body.kind == self._queue[0].body.kind][:MOST]
            self._queue = [each for each in self._queue if each not in batch]
            if not self._queue:
                self._came.clear()
            if not batch:
                continue
            try:
                pictures = await asyncio.to_thread(self.call, [each.body for each in batch])
            except Exception as error:  # whoever waits for the batch is told, and the next is drawn
                for each in batch:
                    if not each.drawn.done():
                        each.drawn.set_exception(error)
            else:
                for each, picture in zip(batch, pictures, strict=True):
                    if not each.drawn.done():  # the client has gone
                        each.drawn.set_result(picture)

    @torch.inference_mode()
    def call(self, bodies: Sequence[Body]) -> list[Image.Image]:
        width, height = map(int, bodies[0].size.split("x"))
        made: Any = self._pipeline(
            prompt=[body.prompt for body in bodies],
            width=width,
            height=height,
            num_inference_steps=bodies[0].num_inference_steps,
            guidance_scale=bodies[0].guidance_scale,
            generator=[_generator(body.seed) for body in bodies],
        )
        pictures: list[Image.Image] = made.images
        return pictures


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
        return generator
    return generator.manual_seed(seed)


def png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    drawer = app.state.drawer = Drawer()
    await asyncio.to_thread(drawer.call, [Body(prompt="a red circle")])  # until all is warm
    working = asyncio.create_task(drawer.work())
    yield
    working.cancel()


app = FastAPI(lifespan=_lifespan)


@app.post("/v1/images/generations")
async def generate(body: Body) -> dict[str, Any]:
    picture = await app.state.drawer.draw(body)
    return {"created": int(time.time()), "data": [{"b64_json": await asyncio.to_thread(png, picture)}]}


@app.get("/readyz")
async def ready() -> dict[str, str]:
    return {"status": "ready"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--threads", type=int, help="that torch computes with (default: torch's own choice)")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    uvicorn.run(app, port=chosen.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()

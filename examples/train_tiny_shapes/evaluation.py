"""``python -m examples.train_tiny_shapes.evaluation MODEL 256x256:40 512x512:20``: how many objects come out right.

An object is right when the pixels of its colour overlap its outline by three quarters or more (intersection over union,
the best over small shifts and scales), and no other shape's outline better.
"""

from __future__ import annotations

import itertools
import sys
from random import Random

import numpy as np
import torch
from diffusers import ZImagePipeline
from torch import Tensor

from examples.train_tiny_shapes.distances import DISTANCES
from examples.train_tiny_shapes.drawing import Spot, distances_from, spots
from examples.train_tiny_shapes.scenes import COLOURS, Scene, Shape, caption, random_scene

LEAST_OVERLAP = 0.75
SHIFTS, SCALES = (-0.05, 0.0, 0.05), (0.92, 1.0, 1.08)
JUDGED_SIDE = 128
"""Pixels of the shorter side that are looked at: enough for outlines, and quick."""
SEED = 2026


def main() -> None:
    folder, *sizes = sys.argv[1:]
    pipeline = ZImagePipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for size, count in (item.split(":") for item in sizes):
        width, height = map(int, size.split("x"))
        rng, right = Random(SEED), []
        for seed in range(int(count)):
            scene = random_scene(rng)
            generator = torch.Generator().manual_seed(seed)
            drawn = pipeline(caption(scene, rng), height, width, 12, guidance_scale=3.0, generator=generator).images[0]
            right += judge(torch.from_numpy(np.array(drawn)).permute(2, 0, 1) / 255, scene)
        print(f"{size}: {sum(right)} of {len(right)} objects right", flush=True)


def judge(picture: Tensor, scene: Scene) -> list[bool]:
    """Whether each object of ``scene`` is right in ``picture``, ``(3, height, width)`` in 0..1."""
    stride = max(1, min(picture.shape[1:]) // JUDGED_SIDE)
    picture = picture[:, ::stride, ::stride]
    palette = torch.tensor(list(COLOURS.values())).view(-1, 3, 1, 1)
    colours = torch.linalg.vector_norm(picture - palette, dim=1).argmin(0)
    names = list(COLOURS)
    results = []
    for item, spot in zip(scene.items, spots(scene, *picture.shape[1:]), strict=True):
        near = distances_from(Shape.SQUARE, Spot(spot.x, spot.y, spot.radius * 1.75), *colours.shape) < 0
        mask = near & (colours == names.index(item.colour))
        overlaps = {shape: _overlap(mask, shape, spot) for shape in DISTANCES}
        best = max(overlaps, key=lambda shape: overlaps[shape])
        results.append(best is item.shape and overlaps[best] >= LEAST_OVERLAP)
    return results


def _overlap(mask: Tensor, shape: Shape, spot: Spot) -> float:
    best = 0.0
    for x, y, scale in itertools.product(SHIFTS, SHIFTS, SCALES):
        moved = Spot(spot.x + x, spot.y + y, spot.radius * scale)
        outline = distances_from(shape, moved, *mask.shape) < 0
        best = max(best, int((outline & mask).sum()) / int((outline | mask).sum()))
    return best


if __name__ == "__main__":
    main()

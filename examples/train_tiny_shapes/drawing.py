"""Scenes as pictures."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from examples.train_tiny_shapes.distances import DISTANCES
from examples.train_tiny_shapes.scenes import COLOURS, PLACES, RADII, Item, Layout, Scene, Shape, caption, random_scene

EDGE_PIXELS = 1.2
PAIR_OFFSET = 0.47
PAIR_RADIUS = 0.34
LARGEST_OFF_CENTRE = 0.48
"""A larger object that stands at an edge would be cut off."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where an object stands: centre from the middle of the picture, and radius, in halves of the shorter side."""

    x: float
    y: float
    radius: float


def draw(scene: Scene, height: int, width: int, rng: Random) -> Tensor:
    """Draw ``scene`` with positions and sizes varied a little: float32 ``(3, height, width)`` in -1..1."""
    picture = _colour(scene.background).expand(3, height, width)
    for item, spot in zip(scene.items, spots(scene, height, width), strict=True):
        x, y = spot.x + rng.uniform(-0.05, 0.05), spot.y + rng.uniform(-0.05, 0.05)
        varied = Spot(x, y, spot.radius * rng.uniform(0.94, 1.06))
        distance = distances_from(item.shape, varied, height, width) * min(height, width) / 2
        coverage = torch.clamp(0.5 - distance / EDGE_PIXELS, 0, 1)
        picture = picture * (1 - coverage) + _colour(item.colour) * coverage
    return picture * 2 - 1


def distances_from(shape: Shape, spot: Spot, height: int, width: int) -> Tensor:
    """Signed distance of every pixel from the outline, in halves of the shorter side: ``(height, width)``."""
    half = min(height, width) / 2
    y, x = torch.meshgrid(_axis(height) / half, _axis(width) / half, indexing="ij")
    return DISTANCES[shape](x - spot.x, y - spot.y, spot.radius)


def spots(scene: Scene, height: int, width: int) -> list[Spot]:
    """Where the objects of ``scene`` stand before chance moves them."""
    shorter = min(height, width)
    placed = (_placement(scene, index, item) for index, item in enumerate(scene.items))
    return [Spot(x * width / shorter, y * height / shorter, radius) for (x, y), radius in placed]


def draw_batch(count: int, height: int, width: int, rng: Random) -> tuple[list[str], Tensor]:
    """``count`` random scenes: captions, and pictures as float32 ``(count, 3, height, width)`` in -1..1."""
    scenes = [random_scene(rng) for _ in range(count)]
    pictures = torch.stack([draw(scene, height, width, rng) for scene in scenes])
    return [caption(scene, rng) for scene in scenes], pictures.contiguous(memory_format=torch.channels_last)


def _axis(extent: int) -> Tensor:
    """Pixel centres, counted from the middle of the picture."""
    return torch.arange(extent) + 0.5 - extent / 2


def _colour(name: str) -> Tensor:
    return torch.tensor(COLOURS[name]).view(3, 1, 1)


def _placement(scene: Scene, index: int, item: Item) -> tuple[tuple[float, float], float]:
    """Centre in -1..1 of each side, radius in halves of the shorter side."""
    offset = PAIR_OFFSET if index else -PAIR_OFFSET
    match scene.layout:
        case Layout.BESIDE:
            return (offset, 0.0), PAIR_RADIUS
        case Layout.STACKED:
            return (0.0, offset), PAIR_RADIUS
        case Layout.ALONE:
            radius = RADII[item.size]
            return PLACES[item.place or "in the center"], min(radius, LARGEST_OFF_CENTRE) if item.place else radius

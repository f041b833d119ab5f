"""Signed distance fields of the shapes: negative inside, so that edges can be smoothed at any resolution.

Each takes the coordinates of the pixels relative to the shape's centre (y down) and its radius, in one unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from examples.train_tiny_shapes.scenes import Shape


def _circle(x: Tensor, y: Tensor, radius: float) -> Tensor:
    return torch.hypot(x, y) - radius


def _ring(x: Tensor, y: Tensor, radius: float) -> Tensor:
    return (torch.hypot(x, y) - 0.78 * radius).abs() - 0.22 * radius


def _square(x: Tensor, y: Tensor, radius: float) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.86 * radius


def _diamond(x: Tensor, y: Tensor, radius: float) -> Tensor:
    return (x.abs() + y.abs() - 1.1 * radius) / math.sqrt(2)


def _cross(x: Tensor, y: Tensor, radius: float) -> Tensor:
    bar = torch.maximum(x.abs() - radius, y.abs() - 0.32 * radius)
    post = torch.maximum(x.abs() - 0.32 * radius, y.abs() - radius)
    return torch.minimum(bar, post)


def _triangle(x: Tensor, y: Tensor, radius: float) -> Tensor:
    up = 0.15 * radius - y  # lowered a little: a triangle's centre lies below the middle of its height
    return torch.maximum(x.abs() * math.sqrt(3) / 2 + up / 2, -up) - 0.55 * radius


def _star(x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Folds the plane onto half of one of the five points; there the edge is one line, tip to notch."""
    sector = 2 * math.pi / 5
    angle = (torch.atan2(x, -y) + sector / 2) % sector - sector / 2
    distance = torch.hypot(x, y)
    along, across = distance * torch.cos(angle), distance * torch.sin(angle).abs()
    tip, notch = 1.15 * radius, 0.495 * radius
    notch_along, notch_across = notch * math.cos(sector / 2), notch * math.sin(sector / 2)
    normal = (notch_across, tip - notch_along)
    return ((along - tip) * normal[0] + across * normal[1]) / math.hypot(*normal)


def _heart(x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Two arcs above a right-angled corner, after Inigo Quilez."""
    scale = 1.15 * radius
    x, y = (x / scale).abs(), 0.55 - y / scale
    lobe = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    nearest = 0.5 * torch.clamp(x + y, min=0)
    corner = torch.minimum(torch.hypot(x, y - 1), torch.hypot(x - nearest, y - nearest)) * torch.sign(x - y)
    return torch.where(x + y > 1, lobe, corner) * scale


DISTANCES: dict[Shape, Callable[[Tensor, Tensor, float], Tensor]] = {
    Shape.CIRCLE: _circle,
    Shape.SQUARE: _square,
    Shape.TRIANGLE: _triangle,
    Shape.STAR: _star,
    Shape.RING: _ring,
    Shape.HEART: _heart,
    Shape.CROSS: _cross,
    Shape.DIAMOND: _diamond,
}

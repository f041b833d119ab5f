"""The evaluation knows right objects from wrong ones."""

from __future__ import annotations

from random import Random

import pytest

from examples.train_tiny_shapes.drawing import draw
from examples.train_tiny_shapes.evaluation import judge
from examples.train_tiny_shapes.scenes import Item, Layout, Scene, Shape

PAIR = Scene("white", (Item(Shape.HEART, "green"), Item(Shape.STAR, "orange")), Layout.BESIDE)


def verdict(drawn: Scene, asked: Scene) -> list[bool]:
    return judge(draw(drawn, 128, 192, Random(3)) / 2 + 0.5, asked)


@pytest.mark.parametrize("shape", Shape)
@pytest.mark.parametrize("size", ["", "large"])
def test_what_is_drawn_is_right(shape: Shape, size: str) -> None:
    scene = Scene("blue", (Item(shape, "yellow", size, "on the left"),))
    assert verdict(scene, scene) == [True]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (Item(Shape.HEART, "green"), Item(Shape.STAR, "orange"), [True, True]),
        (Item(Shape.CIRCLE, "green"), Item(Shape.STAR, "orange"), [False, True]),
        (Item(Shape.HEART, "green"), Item(Shape.STAR, "red"), [True, False]),
        (Item(Shape.STAR, "orange"), Item(Shape.HEART, "green"), [False, False]),
    ],
)
def test_wrong_shapes_colours_and_places(first: Item, second: Item, expected: list[bool]) -> None:
    assert verdict(Scene("white", (first, second), Layout.BESIDE), PAIR) == expected

"""The drawn scenes say in words what they show."""

from __future__ import annotations

import re
from random import Random

import pytest
import torch

from examples.train_tiny_shapes.drawing import draw, draw_batch
from examples.train_tiny_shapes.scenes import (
    COLOURS,
    PLACES,
    RADII,
    Item,
    Layout,
    Scene,
    Shape,
    caption,
    random_scene,
)

FILLED = [Shape.CIRCLE, Shape.SQUARE, Shape.TRIANGLE, Shape.STAR, Shape.HEART, Shape.CROSS, Shape.DIAMOND]


def colour_at(picture: torch.Tensor, x: float, y: float) -> str:
    """The known colour nearest to the pixel at ``x``, ``y`` in -1..1."""
    _, height, width = picture.shape
    pixel = picture[:, int((y + 1) / 2 * height), int((x + 1) / 2 * width)] / 2 + 0.5
    return min(COLOURS, key=lambda name: float((pixel - torch.tensor(COLOURS[name])).abs().sum()))


@pytest.mark.parametrize("shape", FILLED)
@pytest.mark.parametrize("place", PLACES)
def test_an_object_has_its_colour_where_it_stands(shape: Shape, place: str) -> None:
    picture = draw(Scene("white", (Item(shape, "red", "small", place),)), 64, 96, Random(1))
    assert colour_at(picture, *PLACES[place]) == "red"
    assert colour_at(picture, -0.98, -0.98) == "white"


def test_a_ring_is_open_in_the_middle() -> None:
    picture = draw(Scene("white", (Item(Shape.RING, "red", "large"),)), 64, 64, Random(1))
    assert colour_at(picture, 0, 0) == "white"
    assert "red" in {colour_at(picture, x / 20, 0) for x in range(20)}


@pytest.mark.parametrize(
    ("layout", "first", "second"), [(Layout.BESIDE, (-0.47, 0), (0.47, 0)), (Layout.STACKED, (0, -0.47), (0, 0.47))]
)
def test_two_objects_stand_as_the_caption_says(
    layout: Layout, first: tuple[float, float], second: tuple[float, float]
) -> None:
    pair = (Item(Shape.CIRCLE, "red"), Item(Shape.SQUARE, "blue"))
    picture = draw(Scene("black", pair, layout), 64, 64, Random(1))
    assert (colour_at(picture, *first), colour_at(picture, *second)) == ("red", "blue")


def test_captions_name_everything_that_is_drawn() -> None:
    rng = Random(5)
    for _ in range(300):
        scene = random_scene(rng)
        words = re.findall(r"[a-z]+", caption(scene, rng).lower())
        told = [scene.background, *(word for item in scene.items for word in (item.colour, item.shape))]
        assert set(told) <= set(words)
        assert scene.background not in {item.colour for item in scene.items}
        assert {item.size for item in scene.items} <= set(RADII)


def test_batches_repeat_with_their_seed() -> None:
    first, again = (draw_batch(3, 32, 48, Random(9)) for _ in range(2))
    assert first[0] == again[0]
    assert first[1].shape == (3, 3, 32, 48)
    assert torch.equal(first[1], again[1])
    assert first[1].abs().max() <= 1


def test_a_scene_refuses_the_wrong_number_of_items() -> None:
    with pytest.raises(ValueError, match="STACKED takes 2 items, got 1"):
        Scene("red", (Item(Shape.RING, "blue"),), Layout.STACKED)

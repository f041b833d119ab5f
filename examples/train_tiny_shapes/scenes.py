"""What a picture may show: the words, random scenes made of them, and the captions that tell of a scene."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from random import Random

RGB = tuple[float, float, float]

COLOURS: dict[str, RGB] = {
    "red": (0.90, 0.12, 0.14),
    "green": (0.13, 0.65, 0.25),
    "blue": (0.12, 0.30, 0.85),
    "yellow": (0.98, 0.85, 0.15),
    "orange": (0.98, 0.55, 0.10),
    "purple": (0.50, 0.20, 0.65),
    "pink": (0.98, 0.55, 0.72),
    "cyan": (0.20, 0.80, 0.85),
    "brown": (0.48, 0.30, 0.16),
    "white": (0.98, 0.98, 0.98),
    "black": (0.05, 0.05, 0.06),
    "gray": (0.55, 0.56, 0.58),
}
"""Word → red, green, blue in 0..1."""

PLACES: dict[str, tuple[float, float]] = {
    "in the center": (0.0, 0.0),
    "on the left": (-0.48, 0.0),
    "on the right": (0.48, 0.0),
    "at the top": (0.0, -0.48),
    "at the bottom": (0.0, 0.48),
}
"""Words → centre (x, y) in -1..1, y down."""

RADII: dict[str, float] = {"small": 0.24, "": 0.38, "large": 0.55}
"""Word → radius in halves of the picture's shorter side."""

OPENINGS = ("a picture of ", "an image of ", "a drawing of ", "draw ")


class Shape(StrEnum):
    CIRCLE = "circle"
    SQUARE = "square"
    TRIANGLE = "triangle"
    STAR = "star"
    RING = "ring"
    HEART = "heart"
    CROSS = "cross"
    DIAMOND = "diamond"


class Layout(StrEnum):
    """How the objects of a scene stand to each other, in the caption's words."""

    ALONE = ""
    BESIDE = "to the left of"
    STACKED = "above"


@dataclass(frozen=True, slots=True)
class Item:
    """One object. Empty ``size`` and ``place`` go unsaid: medium, in the centre."""

    shape: Shape
    colour: str
    size: str = ""
    place: str = ""

    @property
    def noun(self) -> str:
        return " ".join(filter(None, (self.size, self.colour, self.shape)))


@dataclass(frozen=True, slots=True)
class Scene:
    background: str
    items: tuple[Item, ...]
    layout: Layout = Layout.ALONE

    def __post_init__(self) -> None:
        wanted = 1 if self.layout is Layout.ALONE else 2
        if len(self.items) != wanted:
            raise ValueError(f"layout {self.layout.name} takes {wanted} items, got {len(self.items)}")


def random_scene(rng: Random) -> Scene:
    """One object two times in three, two objects otherwise; no object has the background's colour."""
    background = rng.choice(list(COLOURS))
    colours = [colour for colour in COLOURS if colour != background]
    if rng.random() < 0.35:
        pair = tuple(Item(rng.choice(list(Shape)), rng.choice(colours)) for _ in range(2))
        return Scene(background, pair, rng.choice([Layout.BESIDE, Layout.STACKED]))
    place = rng.choice(list(PLACES)) if rng.random() < 0.6 else ""
    item = Item(rng.choice(list(Shape)), rng.choice(colours), rng.choice(list(RADII)), place)
    return Scene(background, (item,))


def caption(scene: Scene, rng: Random) -> str:
    """One of the ways to say ``scene``: articles, openings, capitals and full stops vary, as users' do."""
    text = f"{_subject(scene, rng)}{_background(scene.background, rng)}"
    if rng.random() < 0.15:
        text = rng.choice(OPENINGS) + text
    if rng.random() < 0.2:
        text = text[0].upper() + text[1:]
    return f"{text}." if rng.random() < 0.2 else text


def _subject(scene: Scene, rng: Random) -> str:
    first = scene.items[0]
    if scene.layout is not Layout.ALONE:
        return f"{_with_article(first.noun)} {scene.layout} {_with_article(scene.items[1].noun)}"
    noun = _with_article(first.noun) if rng.random() < 0.9 else first.noun
    return f"{noun} {first.place}".rstrip()


def _background(colour: str, rng: Random) -> str:
    return rng.choice([f" on {_with_article(colour)} background", f", {colour} background", f" on {colour}"])


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"

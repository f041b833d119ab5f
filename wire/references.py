"""What becomes of the pictures that a model is given as references: sizes from which cost is predicted."""

from __future__ import annotations

import math
from struct import unpack_from

import msgspec

from wire.bounded import Count, Positive

Size = tuple[int, int]
"""Width, height in pixels."""


_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_SIZE_AT, _PNG_SIZE_END = 16, 24


class References(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How one workflow resizes each of its pictures before the autoencoder reads it, and who else reads it.

    Where none of ``sizes``, ``area`` and ``max_area`` is given, pictures have the size of the answer.
    """

    sizes: tuple[tuple[Positive, Positive], ...] = ()
    """Width, height in pixels: that whose proportions are nearest, the first of equals. Those of a picture count once
    its sides are rounded down to ``multiple``."""
    area: Count = 0
    """Pixels: about as many, in the picture's own proportions; sides are rounded to ``multiple``."""
    max_area: Count = 0
    """Pixels: the picture's own size, or if that has more, about as many; sides are rounded down to ``multiple``."""
    multiple: Positive = 1
    in_sequence: bool = False
    """The latents of each lengthen the sequence that the dit denoises."""
    prompt_area: Count = 0
    """Pixels, about: at which the text encoder sees each; 0 where it sees none."""
    prompt_patch: Positive = 28
    """Side in pixels of the square that becomes one token of the prompt."""

    def size(self, picture: Size, answer: Size) -> Size:
        """At which the autoencoder encodes ``picture``."""
        width, height = picture
        if self.sizes:
            shape = self._down(width) / self._down(height)
            return min(self.sizes, key=lambda size: abs(shape - size[0] / size[1]))
        if self.area:
            scale = math.sqrt(self.area / (width * height))
            return self._nearest(width * scale), self._nearest(height * scale)
        if self.max_area:
            scale = min(1.0, math.sqrt(self.max_area / (width * height)))
            return self._down(width * scale), self._down(height * scale)
        return answer

    def prompt_tokens(self, picture: Size) -> int:
        """That ``picture`` adds to the prompt, to within the rounding of a row and a column."""
        if not self.prompt_area:
            return 0
        width, height = picture
        scale = math.sqrt(self.prompt_area / (width * height)) / self.prompt_patch
        return max(1, round(width * scale)) * max(1, round(height * scale))

    def _nearest(self, side: float) -> int:
        return max(1, round(side / self.multiple)) * self.multiple

    def _down(self, side: float) -> int:
        return max(1, int(side) // self.multiple) * self.multiple


def png_size(data: bytes | None) -> Size | None:
    """Width and height in pixels, from the file's header; None of what is no PNG."""
    if data is None or not data.startswith(_PNG) or len(data) < _PNG_SIZE_END:
        return None
    width, height = unpack_from(">II", data, _PNG_SIZE_AT)
    return (width, height) if width and height else None

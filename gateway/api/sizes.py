"""Which pixel sizes a model makes. No size that a client names is rounded: one that does not fit is refused with the
nearest that do. Only where a picture's own size is wanted, the nearest is taken."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from gateway.api.errors import ApiError
from gateway.settings import Settings
from wire.params import ModelInfo
from wire.record import record

_SIZE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", re.ASCII)


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@record(frozen=True, slots=True)
class SizeRules:
    """What one model accepts under one server's limits."""

    default: Size
    multiple: int
    max_pixels: int
    max_aspect: float

    @classmethod
    def of(cls, model: ModelInfo, settings: Settings) -> SizeRules:
        limit = min(model.max_pixels or settings.max_pixels, settings.max_pixels)
        return cls(Size(*model.default_size), model.size_multiple, limit, settings.max_aspect_ratio)

    def choose(self, size: str | None, width: int | None, height: int | None) -> Size:
        """The size that ``size`` or ``width`` and ``height`` ask for. Raises ``ApiError``."""
        named = None if size in (None, "auto") else _parse(size)
        given = None if width is None and height is None else _both(width, height)
        if named and given and named != given:
            raise _invalid(f"'size' ({named}) contradicts 'width' and 'height' ({given}); send one of them.")
        wanted = named or given
        if wanted is None:
            return self.default
        self._check(wanted)
        return wanted

    def fit(self, size: Size) -> Size:
        """The size nearest to that of a picture, with its aspect ratio but for rounding. Raises ``ApiError``."""
        if max(size) > min(size) * self.max_aspect:
            raise _invalid(
                f"The picture has {size} pixels: its longer edge may be {self.max_aspect:g} times the shorter one, "
                "unless 'size' names another size."
            )
        scale = min(1.0, math.sqrt(self.max_pixels / (size.width * size.height)))
        fitted = Size(*(max(round(edge * scale / self.multiple), 1) * self.multiple for edge in size))
        if fitted.width * fitted.height <= self.max_pixels:
            return fitted
        return Size(*(max(int(edge * scale) // self.multiple, 1) * self.multiple for edge in size))

    def _check(self, size: Size) -> None:
        if size.width * size.height > self.max_pixels:
            raise _invalid(f"Invalid size {size}: at most {self.max_pixels} pixels in all.")
        if max(size) > min(size) * self.max_aspect:
            raise _invalid(f"Invalid size {size}: the longer edge may be {self.max_aspect:g} times the shorter one.")
        if size.width % self.multiple or size.height % self.multiple:
            nearest = " or ".join(map(str, self._nearest(size)))
            raise _invalid(
                f"Invalid size {size}: width and height must be multiples of {self.multiple}; the nearest: {nearest}."
            )

    def _nearest(self, size: Size) -> tuple[Size, ...]:
        """The multiples around ``size``: rounded down, rounded up."""
        low = Size(*(max(edge // self.multiple, 1) * self.multiple for edge in size))
        high = Size(*(math.ceil(edge / self.multiple) * self.multiple for edge in size))
        return (low,) if low == high else (low, high)


def _parse(size: str) -> Size:
    match = _SIZE.fullmatch(size)
    if match is None:
        raise _invalid(f"Invalid size '{size[:40]}': expected 'auto' or WIDTHxHEIGHT in pixels, such as '1024x1024'.")
    return Size(int(match[1]), int(match[2]))


def _both(width: int | None, height: int | None) -> Size:
    if width is None or height is None:
        missing = "width" if width is None else "height"
        raise ApiError("'width' and 'height' go together.", code="missing_required_parameter", param=missing)
    return Size(width, height)


def _invalid(message: str) -> ApiError:
    return ApiError(message, code="invalid_value", param="size")

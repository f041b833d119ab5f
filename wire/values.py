"""Values that cross between stages: a closed set of types. (Packing lives in ``wire.bundle``.)"""

from __future__ import annotations

from wire.errors import UnsupportedValue
from wire.record import record

DTYPE_BYTES: dict[str, int] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "uint32": 4,
    "int32": 4,
    "uint64": 8,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "complex64": 8,
    "complex128": 16,
}
"""torch's dtype names → bytes per element."""


@record(frozen=True, slots=True)
class Tensor:
    """A dense, C-ordered tensor: ``data`` holds ``prod(shape)`` elements of ``dtype``, in host memory."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise UnsupportedValue(f"dtype {self.dtype!r} cannot cross; one of {', '.join(DTYPE_BYTES)} can")
        count = 1
        for extent in self.shape:
            if extent < 0:
                raise UnsupportedValue(f"shape {self.shape} has a negative extent")
            count *= extent
        if self.data.nbytes != count * DTYPE_BYTES[self.dtype]:
            raise UnsupportedValue(
                f"a {self.dtype} tensor of shape {self.shape} takes {count * DTYPE_BYTES[self.dtype]} bytes, "
                f"its buffer has {self.data.nbytes}"
            )


@record(frozen=True, slots=True)
class Image:
    """A picture between stages, as PNG bytes."""

    png: bytes


Value = (
    None | bool | int | float | str | bytes | Tensor | Image | list["Value"] | tuple["Value", ...] | dict[str, "Value"]
)

"""Names of the formats in which a component's weights may be kept, and what each asks for. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class WeightFormat(StrEnum):
    NONE = "none"
    """As the model's dtype says; stands against one in ``serving.json``."""
    INT8 = "int8"
    INT8_DYNAMIC = "int8-dynamic"
    INT4 = "int4"
    FLOAT8 = "float8"
    FLOAT8_DYNAMIC = "float8-dynamic"
    NF4 = "nf4"
    FLOAT8_STORAGE = "float8-storage"


@dataclass(frozen=True, slots=True)
class Needs:
    package: str = ""
    """That makes and computes with it; empty: torch and diffusers do."""
    cuda: tuple[int, int] | None = None
    """Compute capability; None: any device."""
    dtype: str = ""
    """The only one that it computes in; empty: any."""


NEEDS: Mapping[WeightFormat, Needs] = {
    WeightFormat.INT8: Needs("torchao"),
    WeightFormat.INT8_DYNAMIC: Needs("torchao"),
    WeightFormat.INT4: Needs("torchao", cuda=(8, 0), dtype="bfloat16"),
    WeightFormat.FLOAT8: Needs("torchao"),
    WeightFormat.FLOAT8_DYNAMIC: Needs("torchao", cuda=(8, 9), dtype="bfloat16"),
    WeightFormat.NF4: Needs("bitsandbytes"),
    WeightFormat.FLOAT8_STORAGE: Needs(),
}

Formats = Mapping[str, WeightFormat]
"""Component → format; those that are absent are kept as the model's dtype says."""


def parsed(given: Mapping[str, str]) -> dict[str, WeightFormat]:
    """Raises ``ValueError`` for what is no format."""
    found = {}
    for component, name in given.items():
        try:
            found[component] = WeightFormat(name)
        except ValueError:
            raise ValueError(f"{name!r} is no format of weights; {', '.join(WeightFormat)} are") from None
    return found

"""How much of a component's weights is on the device at once. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Offload(StrEnum):
    NONE = "none"
    """All of them; stands against another level in ``serving.json``."""
    BLOCK = "block"
    """What repeats, one block after another; the rest stays there."""
    LEAF = "leaf"
    """Layer after layer."""


Offloads = Mapping[str, Offload]
"""Component → level; those that are absent are on the device as a whole."""


def parsed(given: Mapping[str, str]) -> dict[str, Offload]:
    """Raises ``ValueError`` for what is no level."""
    found = {}
    for component, name in given.items():
        try:
            found[component] = Offload(name)
        except ValueError:
            raise ValueError(f"{name!r} is no level of offloading; {', '.join(Offload)} are") from None
    return found

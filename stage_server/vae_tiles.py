"""Values of settings that the engine knows, too. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

VaeTile = Annotated[int, Field(ge=64)] | Literal["auto"]
"""Side of the tiles in pixels, or what the device needs."""

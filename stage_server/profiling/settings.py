"""Settings of the subcommands ``profile`` and ``memory``; variables that no command reads."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode

from stage_server.command_line import read_as
from stage_server.further_settings import FurtherSettings
from stage_server.settings import EngineSettings, Settings
from wire.environment import complaints


class MeasuredSettings(FurtherSettings, EngineSettings):
    """Of what is measured: a model, and the stages beside it."""

    model: str = Field(min_length=1, description="bundled name, folder or hub id of the model")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self.check_further("diffusers", ())
        return self


class ProfileSettings(MeasuredSettings):
    """Of ``python -m stage_server profile``."""

    sizes: Annotated[tuple[tuple[int, int], ...], NoDecode] = Field(
        (), description="pictures to time, WIDTHxHEIGHT,…; unset: from the smallest to the largest that is served"
    )
    repeats: int = Field(5, ge=1, le=100, description="measurements of each, of which the median counts")
    output: Path | None = Field(None, description="file to write; to the terminal if unset")

    @field_validator("sizes", mode="before")
    @classmethod
    def _split(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        pairs = [re.fullmatch(r"(\d+)x(\d+)", part.strip()) for part in given.split(",")]
        if len(pairs) < 2 or not all(pairs):
            raise ValueError(f"{given!r} is no list of at least two sizes such as 256x256,1024x768")
        return tuple((int(pair[1]), int(pair[2])) for pair in pairs if pair)


class MemorySettings(MeasuredSettings):
    """Of ``python -m stage_server memory``."""

    measure: bool = Field(False, description="load each component in each way, and compare")
    output: Path | None = Field(None, description="file for what the roles take, as 'plan --memory' reads it")


def read_profile_settings(
    arguments: Sequence[str] | None = None, program: str = "python -m stage_server"
) -> ProfileSettings:
    """The same for the subcommand ``profile``."""
    text = "Times a model on this device and writes a cost profile, which docs/profiles.md describes."
    return read_as(ProfileSettings, f"{program} profile", text, arguments)


def read_memory_settings(
    arguments: Sequence[str] | None = None, program: str = "python -m stage_server"
) -> MemorySettings:
    """The same for the subcommand ``memory``."""
    text = (
        "Tells what each component of a model takes of the device in each format and offloaded, and the roles as "
        "--quantize and --offload have it."
    )
    return read_as(MemorySettings, f"{program} memory", text, arguments)


def ignored_variables(*others: type[BaseSettings]) -> Iterator[str]:
    """A warning about each variable that was probably meant as an option, and is none of ``others`` either."""
    kinds: tuple[type[BaseSettings], ...] = (Settings, ProfileSettings, MemorySettings, *others)
    known = [name for kind in kinds for name in kind.model_fields]
    return complaints(os.environ, "DISAGFUSION_STAGE_", known)

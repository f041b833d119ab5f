"""From ``fleet.toml`` to a fleet; every complaint names the file, the key and what would be right."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fleet.description import Fleet
from fleet.table import InvalidFleet


def read_fleet(path: Path) -> Fleet:
    """Raises ``InvalidFleet``."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidFleet(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidFleet(f"{path} is not TOML: {error}") from error
    try:
        return Fleet.model_validate(given)
    except ValidationError as error:
        raise InvalidFleet("\n".join(f"{path}: {_complaint(problem)}" for problem in error.errors())) from None


def _complaint(problem: Any) -> str:
    at = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    message = "is missing" if problem["type"] == "missing" else problem["msg"].removeprefix("Value error, ")
    return f"{at}: {message}" if at else message

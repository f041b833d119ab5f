"""Settings as they are given: on the command line, by variables, in a TOML file (without a prefix)."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Set
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import SettingsError

from gateway.settings import InvalidSettings, Settings
from wire.environment import complaints

VARIABLE = "DISAGFUSION_CONFIG"
"""Names the file where ``--config`` does not."""


def load_settings(config: str | Path | None = None, **overrides: object) -> Settings:
    """From the environment and, behind it, the file ``config`` or ``DISAGFUSION_CONFIG``; ``overrides`` (from the
    command line) win. Raises ``InvalidSettings``."""
    file, from_file = _from_file(config)
    try:
        return Settings(**(from_file | overrides))  # type: ignore[arg-type] # validated by pydantic, whatever their type
    except SettingsError as error:
        name = next((name for name in Settings.model_fields if f'"{name}"' in str(error)), "")
        raise InvalidSettings(f"DISAGFUSION_{name.upper()}: write it as JSON, or leave it out") from error.__cause__
    except ValidationError as error:
        written = from_file.keys() - overrides.keys()
        raise InvalidSettings(
            "\n".join(_complaint(problem["loc"], problem["msg"], file, written) for problem in error.errors())
        ) from None


def origins(config: str | Path | None = None) -> dict[str, str]:
    """Setting → where its value comes from. Raises ``InvalidSettings``."""
    file, from_file = _from_file(config)
    variables = {name.upper(): name for name in os.environ}
    found = dict.fromkeys(from_file, str(file))
    for name in Settings.model_fields:
        if variable := variables.get(f"DISAGFUSION_{name.upper()}"):
            found[name] = variable
    return {name: found.get(name, "default") for name in Settings.model_fields}


def ignored_variables() -> Iterator[str]:
    """A warning about each variable that was probably meant as a setting. Stage servers see to their own."""
    return complaints(os.environ, "DISAGFUSION_", [*Settings.model_fields, "config"], other="DISAGFUSION_STAGE_")


def config_file(config: str | Path | None = None) -> Path | None:
    """``config``, or the file that the environment names."""
    named = config or os.environ.get(VARIABLE)
    return Path(named) if named else None


def _from_file(config: str | Path | None) -> tuple[Path | None, dict[str, object]]:
    """The file, and what it says that the environment does not say otherwise."""
    path = config_file(config)
    return path, {} if path is None else _without_variables(_read(path, Settings.model_fields), os.environ)


def _complaint(location: tuple[int | str, ...], message: str, file: Path | None, written: Set[str]) -> str:
    """``written``: settings whose value is the file's."""
    name = ".".join(str(part) for part in location)
    message = message.removeprefix("Value error, ")
    if location and location[0] in written:
        return f"{file}: {name}: {message}"
    return f"DISAGFUSION_{name.upper()}: {message}" if name else f"DISAGFUSION settings: {message}"


def _read(path: Path, known: Iterable[str]) -> dict[str, object]:
    """Setting → value, not validated yet. Raises ``InvalidSettings``."""
    try:
        values: dict[str, object] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSettings(
            f"{path} cannot be read: {error.strerror}; --config and {VARIABLE} name a TOML file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{path} is not TOML: {error}") from error
    names = list(known)
    for name in values:
        if name not in names:
            nearest = get_close_matches(name.lower().removeprefix("disagfusion_"), names, n=1)
            raise InvalidSettings(
                f"{path}: {name!r} is no setting" + (f"; did you mean {nearest[0]!r}?" if nearest else "")
            )
    return values


def _without_variables(values: Mapping[str, object], environment: Mapping[str, str]) -> dict[str, object]:
    """What the environment does not say otherwise."""
    said = {name.upper() for name in environment}  # as pydantic-settings reads them
    return {name: value for name, value in values.items() if f"DISAGFUSION_{name.upper()}" not in said}

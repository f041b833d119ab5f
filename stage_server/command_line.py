"""Settings from the command line, and what it leaves open from the environment, for every program of a stage server."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings

REPEATABLE = {
    "role": "ROLE",
    "may_take": "ROLE",
    "gateway": "tcp://HOST:PORT",
    "relay": "tcp://HOST:PORT",
    "adapter": "NAME=SOURCE",
    "control": "NAME=SOURCE",
    "ip_adapter": "NAME=SOURCE",
    "may_load": "[NAME=]MODEL",
}
"""Options → what their values are called in ``--help``."""

AnySettings = TypeVar("AnySettings", bound=BaseSettings)


class InvalidSettings(Exception):
    """A setting cannot be used; the text is for the operator and names it."""


def read_as(kind: type[AnySettings], program: str, text: str, arguments: Sequence[str] | None) -> AnySettings:
    """Settings of a ``program`` whose ``--help`` says ``text``; see ``read_settings``."""
    parsed = vars(_parser(kind, program, text).parse_args(arguments))
    try:
        return kind(**{name: value for name, value in parsed.items() if value is not None})
    except ValidationError as error:
        raise InvalidSettings("; ".join(_complaint(problem) for problem in error.errors())) from None


def _parser(kind: type[BaseSettings], program: str, summary: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=summary,
        epilog="Every option can also be set as DISAGFUSION_STAGE_<OPTION>; the command line wins.",
    )
    for name, field in kind.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        text = f"{field.description}{_default(field.default)}"
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        elif name in REPEATABLE:
            parser.add_argument(flag, action="append", metavar=REPEATABLE[name], help=text)
        else:
            parser.add_argument(flag, metavar=name.rpartition("_")[2].upper(), help=text)
    return parser


def _default(value: object) -> str:
    shown = isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""
    return f" (default: {value})".replace("%", "%%") if shown else ""


def _complaint(problem: Any) -> str:
    location = ".".join(str(part) for part in problem["loc"][:1])
    message = "is missing" if problem["type"] == "missing" else problem["msg"].removeprefix("Value error, ")
    return f"--{location.replace('_', '-')}: {message}" if location else message

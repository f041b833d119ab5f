"""Forms of values that several settings have."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator


def _control_address(given: str) -> str:
    if not re.fullmatch(r"tcp://.+:\d+", given):
        raise ValueError(f"{given!r} is no address; write tcp://HOST:PORT")
    return given


def _data_address(given: str) -> str:
    if given and not re.fullmatch(r"tcp://.+:(\d+|\*)", given):
        raise ValueError(f"{given!r} is no address; write tcp://HOST:PORT, or * for any port")
    return given


def _one_line(given: str) -> str:
    if not given.isprintable():
        raise ValueError(f"{given!r} is not one line of printable text")
    return given


ControlAddress = Annotated[str, AfterValidator(_control_address)]
DataAddress = Annotated[str, AfterValidator(_data_address)]
Name = Annotated[str, AfterValidator(_one_line)]


def host_of(bind: str) -> str:
    """As sockets take it."""
    host = bind.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    return "0.0.0.0" if host == "*" else host  # noqa: S104 # what * means there


def by_name(given: object, form: str, what: str) -> dict[str, str] | None:
    """Of a text such as ``transformer=int8,vae=none``, or of a table; None of anything else. Raises ``ValueError``."""
    if isinstance(given, str):
        pairs = [tuple(map(str.strip, part.partition("="))) for part in given.split(",") if part.strip()]
        if unclear := ["".join(pair) for pair in pairs if not all(pair)]:
            raise ValueError(f"{unclear[0]!r} is no {form}")
        if len({name for name, _, _ in pairs}) < len(pairs):
            raise ValueError(f"{given!r} names {what} twice")
        return {name: value for name, _, value in pairs}
    return {str(name): str(value) for name, value in given.items()} if isinstance(given, dict) else None

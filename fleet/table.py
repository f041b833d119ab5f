"""What every table of a fleet's description has in common: no unknown names, and nothing that changes."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import BaseModel, ConfigDict, model_validator


class InvalidFleet(Exception):
    """The description cannot be used; the text is for the operator, a line for each mistake."""


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _has_known_names(cls, given: object) -> object:
        if isinstance(given, dict):
            check_names(given, cls.model_fields)
        return given


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``ValueError`` for the first of ``given`` that is none of ``known``, with the nearest one."""
    names = list(known)
    for name in given:
        if name not in names:
            raise ValueError(f"there is no {name!r} here{nearest(name, names)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean …``, or else which there are."""
    names = list(known)
    found = get_close_matches(name.lower().replace("-", "_"), names, n=1)
    return f"; did you mean {found[0]!r}?" if found else f"; there are {', '.join(map(repr, names)) or 'none'}"

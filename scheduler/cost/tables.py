"""Reading checked values out of a TOML table; errors name file, key and what would be right."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import inf, isfinite
from typing import Any, TypeVar

import msgspec

Kind = TypeVar("Kind", bound=msgspec.Struct)


class ProfileError(ValueError):
    """A profile that cannot be used; the text is for whoever wrote it."""


_MISSING = object()


class Section:
    """One table. Each key is taken once; ``finish`` complains about those that nobody took."""

    def __init__(self, file: str, name: str, table: Mapping[str, Any]):
        self._file = file
        self._name = name
        self._rest = dict(table)

    @property
    def where(self) -> str:
        return f"profile {self._file}" + (f", [{self._name}]" if self._name else "")

    def number(self, key: str) -> float:
        value = self._take(key)
        if not _is_number(value) or not isfinite(value) or value < 0:
            raise self._wrong(key, value, "a number, 0 or more")
        return float(value)

    def integer(self, key: str, *, least: int = 0, most: float = inf, default: int | None = None) -> int:
        value = self._take(key, _MISSING if default is None else default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            limit = f"from {least} to {most}" if isfinite(most) else f"of {least} or more"
            raise self._wrong(key, value, f"a whole number {limit}")
        return value

    def text(self, key: str) -> str:
        value = self._take(key)
        if not isinstance(value, str) or not value:
            raise self._wrong(key, value, "a text, not empty")
        return value

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self._take(key)
        if value not in allowed:
            raise self._wrong(key, value, f"one of {', '.join(allowed)}")
        return str(value)

    def points(self, key: str) -> tuple[tuple[float, float], ...]:
        """``[[x, y], …]`` by rising x."""
        value = self._take(key)
        if not isinstance(value, list) or not value or not all(_is_point(point) for point in value):
            raise self._wrong(key, value, "a list of [tokens, marginal cost], each number 0 or more")
        points = tuple((float(x), float(y)) for x, y in value)
        if any(before[0] >= after[0] for before, after in pairwise(points)):
            raise self._wrong(key, value, "sorted by rising tokens")
        return points

    def shares(self, key: str) -> dict[str, float]:
        """``{ name = share }``; none when the key is absent."""
        value = self._take(key, {})
        if not isinstance(value, dict) or not all(_is_number(share) and 0 < share <= 2 for share in value.values()):
            raise self._wrong(key, value, "a table of names and shares above 0, of 2 at most")
        return {name: float(share) for name, share in value.items()}

    def shape(self, key: str, names: tuple[str, ...]) -> tuple[int | str, ...]:
        value = self._take(key)
        if not isinstance(value, list) or not all(_is_extent(extent, names) for extent in value):
            raise self._wrong(key, value, f"a list of whole numbers above 0 and of {', '.join(names)}")
        return tuple(value)

    def struct(self, key: str, kind: type[Kind]) -> Kind | None:
        """A table with the fields of ``kind``; None when the key is absent."""
        value = self._take(key, None)
        if value is None:
            return None
        fields = [field.name for field in msgspec.structs.fields(kind)]
        try:
            if isinstance(value, dict) and not value.keys() - set(fields):
                return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise ProfileError(f"{self.where}, [{self._path(key)}]: {error}; see docs/profiles.md") from None
        raise self._wrong(key, value, f"a table with some of {', '.join(fields)}")

    def section(self, key: str) -> Section:
        value = self._take(key)
        if not isinstance(value, dict):
            raise self._wrong(key, value, f"a table [{key}]")
        return Section(self._file, self._path(key), value)

    def sections(self, key: str) -> tuple[Section, ...]:
        """A list of tables; none when the key is absent."""
        value = self._take(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self._wrong(key, value, "a list of tables { … }")
        return tuple(Section(self._file, f"{self._path(key)}.{i}", item) for i, item in enumerate(value))

    def finish(self) -> None:
        if self._rest:
            raise ProfileError(f"{self.where}: unknown {', '.join(sorted(self._rest))}; see docs/profiles.md")

    def _take(self, key: str, default: Any = _MISSING) -> Any:
        value = self._rest.pop(key, default)
        if value is _MISSING:
            raise ProfileError(f"{self.where}: {key} is missing; see docs/profiles.md")
        return value

    def _path(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def _wrong(self, key: str, value: object, right: str) -> ProfileError:
        return ProfileError(f"{self.where}: {key} is {value!r}; it must be {right}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_point(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_number(x) and 0 <= x < inf for x in value)


def _is_extent(value: object, names: tuple[str, ...]) -> bool:
    return value in names or (isinstance(value, int) and not isinstance(value, bool) and value > 0)

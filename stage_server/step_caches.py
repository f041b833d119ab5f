"""Names of the ways in which steps reuse what earlier steps computed, and what each may be told. Imports no torch.

A level is a name that requests use (``low``, ``medium``, …); behind it is one of diffusers' cache hooks with its
options, written as ``first-block:threshold=0.1``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

NONE = "none"
"""Every step is computed; as a level's text it takes one of ``serving.json`` back."""

MOST_LEVELS = 16
MOST_RATIOS = 64

_LEVEL = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")

Value = tuple[float, ...]
"""One number, but for lists."""


class CacheHook(StrEnum):
    FIRST_BLOCK = "first-block"
    """The first block is computed; the others where its residual has changed by more than a threshold."""
    MAG = "mag"
    """The blocks are left out while the change that the model's ``ratios`` foretell is below a threshold."""
    TAYLOR = "taylor"
    """One step in so many is computed, the others are extrapolated."""
    PYRAMID = "pyramid"
    """Attention is computed in one step of so many."""
    FASTER = "faster"
    """The same, and extrapolated in between."""
    SEA = "sea"
    """The blocks are left out while the latents, without their noise, have changed by less than a threshold."""


@dataclass(frozen=True, slots=True)
class _Option:
    what: str
    low: float
    high: float
    default: Value | None
    """None: it has to be named."""
    kind: type[int] | type[float] = float
    most: int = 1
    """Numbers, with / between."""

    def read(self, text: str) -> Value:
        values = tuple(float(self.kind(part)) for part in text.split("/"))
        if len(values) > self.most or not all(self.low <= value <= self.high for value in values):  # false of NaN
            raise ValueError
        return values


def _number(low: float, high: float, default: float) -> _Option:
    return _Option(f"a number from {low:g} to {high:g}", low, high, (default,))


def _whole(low: int, high: int, default: int) -> _Option:
    return _Option(f"a whole number from {low} to {high}", low, high, (float(default),), int)


_START, _END = _number(0, 1, 0.2), _number(0, 1, 0.9)
"""Shares of the steps."""
_INTERVAL = _whole(2, 100, 2)

OPTIONS: Mapping[CacheHook, Mapping[str, _Option]] = {
    CacheHook.FIRST_BLOCK: {"threshold": _number(0, 10, 0.1)},
    CacheHook.MAG: {
        "threshold": _number(0, 10, 0.06),
        "most": _whole(1, 100, 3),
        "start": _START,
        "ratios": _Option(
            f"numbers from 0.01 to 100, at most {MOST_RATIOS}, with / between", 0.01, 100, None, most=MOST_RATIOS
        ),
    },
    CacheHook.TAYLOR: {"interval": _INTERVAL, "warm-up": _whole(1, 100, 3), "order": _whole(0, 4, 1)},
    CacheHook.PYRAMID: {"interval": _INTERVAL, "start": _START, "end": _END},
    CacheHook.FASTER: {"interval": _INTERVAL, "start": _START, "end": _END, "weight": _number(0, 2, 0.5)},
    CacheHook.SEA: {"threshold": _number(0, 10, 0.25), "most": _whole(1, 100, 2), "order": _whole(0, 1, 1)},
}


@dataclass(frozen=True, slots=True)
class StepCache:
    """A hook, and all of its options."""

    hook: CacheHook
    options: tuple[tuple[str, Value], ...] = ()

    def numbers(self, option: str) -> Value:
        return dict(self.options)[option]

    def number(self, option: str) -> float:
        return self.numbers(option)[0]

    def whole(self, option: str) -> int:
        return int(self.number(option))

    def __str__(self) -> str:
        return ":".join((self.hook, *(f"{name}={_text(value)}" for name, value in self.options)))


StepCaches = Mapping[str, StepCache]
"""By level."""


def parse(text: str) -> StepCache:
    """``first-block:threshold=0.1``. Raises ``ValueError``."""
    name, *given = text.strip().split(":")
    if name not in set(CacheHook):
        raise ValueError(f"{name!r} is no step cache; {', '.join(CacheHook)} are")
    hook = CacheHook(name)
    return StepCache(hook, tuple(_options(hook, given).items()))


def parse_levels(given: Mapping[str, str]) -> dict[str, StepCache | None]:
    """Level → its cache; None where it is taken back. Raises ``ValueError``."""
    if len(given) > MOST_LEVELS:
        raise ValueError(f"{len(given)} levels are more than {MOST_LEVELS}")
    for level in given:
        if not _LEVEL.fullmatch(level) or level == NONE:
            raise ValueError(
                f"{level!r} names no level of a step cache: small letters, digits and -, at most 32, and not {NONE!r}"
            )
    return {level: None if text.strip() == NONE else parse(text) for level, text in given.items()}


def merged(first: Mapping[str, StepCache | None], then: Mapping[str, StepCache | None]) -> dict[str, StepCache]:
    """``then`` goes before, level by level."""
    return {level: cache for level, cache in sorted({**first, **then}.items()) if cache is not None}


def _options(hook: CacheHook, given: list[str]) -> dict[str, Value]:
    known = OPTIONS[hook]
    values: dict[str, Value | None] = {name: option.default for name, option in known.items()}
    for pair in given:
        name, equals, text = (part.strip() for part in pair.partition("="))
        if name not in known or not equals:
            raise ValueError(f"{pair!r} is no option of {hook}; it has {', '.join(f'{each}=…' for each in known)}")
        try:
            values[name] = known[name].read(text)
        except ValueError:
            raise ValueError(f"{name} of {hook} is {known[name].what}, not {text[:40]!r}") from None
    if unnamed := [name for name, value in values.items() if value is None]:
        raise ValueError(f"{hook} needs {unnamed[0]}=…: {known[unnamed[0]].what}")
    found = {name: value for name, value in values.items() if value is not None}
    start, end = found.get("start", (0.0,)), found.get("end", (1.0,))
    if start >= end:
        raise ValueError(
            f"start of {hook}, {_text(start)}, must be below end, {_text(end)}: they are shares of the steps"
        )
    return found


def _text(value: Value) -> str:
    return "/".join(f"{each:g}" for each in value)

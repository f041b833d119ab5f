"""The highest rate at which something is still in time, on a geometric grid."""

from __future__ import annotations

from collections.abc import Callable

FARTHEST = 60
"""Neighbours below the first rate, after which the search is given up."""


def highest(in_time: Callable[[float], bool], first: float, grid: float = 1.05, stride: int = 6) -> float:
    """By bisection, if it is in time at all lower rates. Raises ``ValueError`` where no rate is slow enough.

    ``first``: where the search begins; ``grid``: the ratio of two neighbours; ``stride``: how many of them it looks
    ahead until it has one that is in time and one that is not.
    """
    kept, broken = -stride, stride
    while not in_time(first * grid**kept):
        kept, broken = kept - stride, kept
        if kept < -FARTHEST:
            raise ValueError(f"not in time even at {first * grid**broken:.3g} times a second")
    while in_time(first * grid**broken):
        kept, broken = broken, broken + stride
    while broken - kept > 1:
        middle = (kept + broken) // 2
        kept, broken = (middle, broken) if in_time(first * grid**middle) else (kept, middle)
    return float(first * grid**kept)

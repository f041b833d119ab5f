"""Processor sharing: how long attempts take that compute together on one device. Pure.

With k of them each gets on ``stretch(k, m)`` times slower than alone, m being what a further one costs in jobs. They
come and go one by one, so every end changes the pace of those that are left.
"""

from __future__ import annotations

from collections.abc import Sequence


def stretch(company: float, marginal: float) -> float:
    """How many times slower than alone each of ``company`` attempts gets on."""
    return 1.0 + marginal * (company - 1.0)


def ends(left: Sequence[float], marginal: float, most: int) -> list[float]:
    """Seconds until each is done, that had the device for ``left`` seconds more if it were alone.

    At most ``most`` compute at a time; the others enter in their order as soon as one ends. Nobody else comes.
    """
    done = [0.0] * len(left)
    rest = dict(enumerate(left[:most]))
    queue = list(range(most, len(left)))
    now = 0.0
    while rest:
        step = min(rest.values())
        now += step * stretch(len(rest), marginal)
        over = [index for index, seconds in rest.items() if seconds <= step]
        rest = {index: seconds - step for index, seconds in rest.items() if index not in over}
        for index in over:
            done[index] = now
            if queue:
                following = queue.pop(0)
                rest[following] = left[following]
    return done

"""Whose jobs are handed to the scheduler next. Pure.

The scheduler is fair among the requests that it knows, but knows only so many jobs at a time. So tenants share these
places evenly, however many jobs each has waiting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from gateway.database.job_queue import Lane


def allot(waiting: Mapping[Lane, int], running: Mapping[str, int], places: int) -> dict[Lane, int]:
    """How many jobs of each lane get one of ``places``. ``running``: tenant → jobs that have a place already.

    Of the lanes of one tenant, the first goes first.
    """
    left = {lane: count for lane, count in waiting.items() if count}
    held = Counter(running)
    given: Counter[Lane] = Counter()
    for _ in range(places):
        if not left:
            break
        lane = min(left, key=lambda lane: held[lane.tenant])
        given[lane] += 1
        held[lane.tenant] += 1
        left[lane] -= 1
        if not left[lane]:
            del left[lane]
    return dict(given)

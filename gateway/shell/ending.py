"""The gateway's planned end: new work is refused, what is under way is finished, servers go to other gateways."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gateway.cells.door import Door
from gateway.cells.keeper import Keeper
from gateway.jobs.desk import JobDesk

LOOK_SECONDS = 0.05

log = logging.getLogger(__name__)


async def wind_down(door: Door, desk: JobDesk, cells: Keeper, seconds: float) -> float:
    """Return once all is done and handed over, or ``seconds`` have passed; what is left of them."""
    clock = asyncio.get_running_loop().time
    until = clock() + seconds
    door.is_draining = True
    desk.take_no_more()
    cells.drain()

    def is_done() -> bool:
        return door.under_way == 0 and cells.is_drained

    if not is_done():
        log.info("ending: %d requests and jobs are under way", door.under_way)
    await _until(is_done, until, clock)
    if not is_done():
        log.warning("%d requests and jobs are not done after %g s", door.under_way, seconds)
    return max(0.0, until - clock())


async def _until(condition: Callable[[], bool], until: float, clock: Callable[[], float]) -> None:
    while not condition() and clock() < until:  # noqa: ASYNC110 # three sources, none of which tells
        await asyncio.sleep(LOOK_SECONDS)

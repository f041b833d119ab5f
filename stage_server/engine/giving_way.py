"""A turn at the device that is given back between two layers, for jobs that wait.

A role's first small job is small in pixels alone: where the model is large and the device slow, one call of it takes
longer than the jobs of roles that stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any

import torch

from stage_server.engine.base import DeviceTurn

LEAST_SECONDS = 0.05
"""For which the device is kept each time: mostly nobody waits, and to line up again costs something."""


class GivingWay:
    """Keeps the device for as long as it waited for it, each time.

    So it has about half of a device that others always want, and a job waits for a layer more than that.
    """

    def __init__(
        self, turn: DeviceTurn, computed: Callable[[], None], clock: Callable[[], float] = perf_counter
    ) -> None:
        """``computed`` returns when the device has done all that this thread gave it."""
        self._turn = turn
        self._computed = computed
        self._clock = clock
        self._held = ExitStack()
        self._until = 0.0

    @contextmanager
    def in_calls_of(self, modules: Iterable[Any]) -> Iterator[None]:
        """Within this the calling thread has the device, but for moments before layers of ``modules``, which nobody
        else calls meanwhile. Those that are no modules of torch are passed over.
        """
        layers = {layer for module in modules if isinstance(module, torch.nn.Module) for layer in module.modules()}
        self._take()
        hooks = [layer.register_forward_pre_hook(self._before_layer) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._held.close()

    def _take(self) -> None:
        asked = self._clock()
        self._held.enter_context(self._turn())
        taken = self._clock()
        self._until = taken + max(LEAST_SECONDS, taken - asked)

    def _before_layer(self, _layer: torch.nn.Module, _given: tuple[Any, ...]) -> None:
        if self._clock() >= self._until:
            self._computed()  # or jobs would wait for it in their own turns, and take that for time of theirs
            self._held.close()
            self._take()

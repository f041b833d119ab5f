"""Guidance on two servers: of each denoising step one computes the conditional half, the other the unconditional one.

Both run the same job's whole loop, unmodified. The one that helps sees the guider's batches in the reverse order, so
that each computes its first call of a step while the other computes the other call, and then they swap what came out.
From there on both have the same numbers, so they stay in step, and what the one that leads makes is what it would have
made alone, to the bit. A step without exactly two calls each computes for itself.

The one that leads needs nobody: whose half does not come in time it computes itself, and goes on alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from time import monotonic
from typing import TYPE_CHECKING, Any

from diffusers import ModularPipeline
from diffusers.guiders.guider_utils import BaseGuidance

from stage_server.engine.base import JobControl, Partner, PartnerLeft
from stage_server.engine.staging import Staging
from stage_server.engine.tensors import from_wire, to_wire
from wire.errors import UnsupportedValue

if TYPE_CHECKING:
    from stage_server.engine.port import JobPort

HALF = "half"
"""Name in the bundle."""

FIRST_SECONDS = 1.0
"""For the other's first half, beside twice the time of one's own: its inputs may come a little later."""

GRACE_SECONDS = 0.5
"""For every other one, likewise: who goes on alone does so to the end, so a hiccup is waited for."""

Compute = Callable[[], Any]


@contextmanager
def halved(
    view: ModularPipeline,
    denoisers: Iterable[Any],
    partner: Partner | None,
    port: JobPort,
    control: JobControl,
    staging: Staging,
    *,
    is_whole: bool,
) -> Iterator[None]:
    """The guided steps of a job are shared with its ``partner``, if it has one. ``is_whole``: they cannot be.

    A guider that changes layers, and a cache of steps, go by how many calls of the step there were before.
    """
    if partner is None:
        yield
        return
    guiders = [component for component in view.components.values() if isinstance(component, BaseGuidance)]
    port.halves = Halves(guiders, denoisers, partner, control, staging)
    try:
        if is_whole or not guiders or any(map(_changes_layers, guiders)):
            port.halves.part()
        yield
    finally:
        port.halves.close()
        port.halves = None


def _changes_layers(guider: BaseGuidance) -> bool:
    prepare: Any = guider.prepare_models
    return getattr(prepare, "__func__", None) is not BaseGuidance.prepare_models


class Halves:
    """Of one job. ``guiders`` are those of its view."""

    def __init__(
        self,
        guiders: Iterable[Any],
        denoisers: Iterable[Any],
        partner: Partner,
        control: JobControl,
        staging: Staging,
    ) -> None:
        self._denoisers = frozenset(denoisers)
        self._partner: Partner | None = partner
        self._leads = partner.leads
        self._control = control
        self._staging = staging
        self._pair = 0
        """Steps that were shared, the present one included …"""
        self._calls = 0
        """… whose so manieth call is next, from 1 on; 0: the step is not shared."""
        self._seconds = 0.0
        """That the own half took."""
        for guider in guiders:
            for name in ("prepare_inputs", "prepare_inputs_from_block_state"):
                setattr(guider, name, self._watched(getattr(guider, name)))

    def call(self, module: Any, compute: Compute) -> Any:
        """What ``module`` gives: computed here, or by the other one. Raises ``PartnerLeft`` where that one leads."""
        if module not in self._denoisers or not self._calls or self._partner is None:
            return compute()
        is_own, self._calls = self._calls == 1, self._calls + 1
        if self._calls > 3:  # more calls than batches: nobody foresaw it
            self.part()
            return compute()
        return self._own(self._partner, compute) if is_own else self._others(self._partner, compute)

    def part(self) -> None:
        """From here on alone. Raises ``PartnerLeft`` where the other one leads: nothing is left to do here."""
        self.close()
        if not self._leads:
            raise PartnerLeft(self._pair)

    def close(self) -> None:
        """The other one need not wait."""
        partner, self._partner = self._partner, None
        if partner is not None:
            partner.leave()

    def _watched(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(prepare)
        def prepared(*args: Any, **kwargs: Any) -> Any:
            batches = prepare(*args, **kwargs)
            self._calls = 1 if len(batches) == 2 and self._partner is not None else 0
            return batches if self._leads or not self._calls else batches[::-1]

        return prepared

    def _own(self, partner: Partner, compute: Compute) -> Any:
        began = monotonic()
        result = compute()
        self._pair += 1
        try:
            partner.give(self._pair, {HALF: to_wire(HALF, result, self._staging.to_host)})
        except UnsupportedValue:
            self.part()
        self._seconds = monotonic() - began
        return result

    def _others(self, partner: Partner, compute: Compute) -> Any:
        patience = 2 * self._seconds + (FIRST_SECONDS if self._pair == 1 else GRACE_SECONDS)
        values = partner.take(self._pair, patience)
        self._control.check()  # a job that is cancelled leaves its partner
        with suppress(UnsupportedValue):
            if values is not None and HALF in values:
                return from_wire(values[HALF], self._staging.to_device)
        self.part()
        return compute()

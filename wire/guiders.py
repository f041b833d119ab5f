"""Ways of guiding that a request may name in place of plain classifier-free guidance, and what they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from wire.bounded import Count, Name
from wire.record import record

MAX_LAYERS = 64
"""That one request may name."""


class GuiderUse(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The guider that one image is made with. What is None is left to the guider."""

    name: Name
    scale: float | None = None
    """Of what the guider adds; that of plain guidance is ``ImageParams.guidance_scale``."""
    layers: Annotated[tuple[Count, ...], msgspec.Meta(max_length=MAX_LAYERS)] = ()
    """Of the denoiser, that are made worse to be guided away from; empty: the middle one."""
    start: float | None = None
    stop: float | None = None
    """Share of the steps from which on, and until which, it does what it does."""
    rescale: float | None = None
    momentum: float | None = None
    eta: float | None = None
    norm: float | None = None
    alpha: float | None = None
    zero_steps: int | None = None


@record(frozen=True, slots=True)
class Bounds:
    """Of a number, both ends included."""

    least: float
    most: float
    whole: bool = False


@record(frozen=True, slots=True)
class Guider:
    """What a guider takes beside its name, and what it costs."""

    numbers: Mapping[str, Bounds]
    takes_layers: bool = False
    changes_layers: bool = False
    """For some of its passes layers of the denoiser are others: its jobs have the device alone."""
    further_passes: int = 0
    """Of the denoiser, in a step in which it does what it does, beside the two of plain guidance."""
    span: tuple[float, float] = (0.0, 1.0)
    """Its own start and stop."""


_SHARE, _FACTOR = Bounds(0.0, 1.0), Bounds(0.0, 100.0)
_ALWAYS = {"start": _SHARE, "stop": _SHARE, "rescale": _SHARE}
_WORSE = {"scale": _FACTOR, **_ALWAYS}
_PROJECTED = {"norm": _FACTOR, "momentum": Bounds(-1.0, 1.0), "eta": _SHARE}

GUIDERS: Mapping[str, Guider] = {
    "cfg": Guider(_ALWAYS),
    # Zeros have no deviation that could be rescaled.
    "cfg_zero_star": Guider({"zero_steps": Bounds(0, 200, whole=True), "start": _SHARE, "stop": _SHARE}),
    "apg": Guider({**_PROJECTED, **_ALWAYS}),
    "tcfg": Guider(_ALWAYS),
    "mambo_g": Guider({"alpha": _FACTOR, **_ALWAYS}),
    "pag": Guider(_WORSE, takes_layers=True, changes_layers=True, further_passes=1, span=(0.01, 0.2)),
    "slg": Guider(_WORSE, takes_layers=True, changes_layers=True, further_passes=1, span=(0.01, 0.2)),
    "auto": Guider(_ALWAYS, takes_layers=True, changes_layers=True),
}
"""By the names that their papers go by. Which of them a model takes is in its ``ModelInfo.guiders``."""


def fault(use: GuiderUse) -> tuple[str, str] | None:
    """What is wrong with it whatever the model: (parameter, why)."""
    known = GUIDERS.get(use.name)
    if known is None:
        return "name", f"there is no guider '{use.name}'; there are {', '.join(GUIDERS)}"
    if use.layers and not known.takes_layers:
        return "layers", f"the guider '{use.name}' takes no 'layers'; it takes {_taken(known)}"
    for name in NUMBERS:
        value = getattr(use, name)
        if value is None:
            continue
        if name not in known.numbers:
            return name, f"the guider '{use.name}' takes no '{name}'; it takes {_taken(known)}"
        bounds = known.numbers[name]
        if not bounds.least <= value <= bounds.most:
            told = str(value) if bounds.whole else f"{value:g}"  # an integer may be too large for a float
            return name, f"expected a number from {bounds.least:g} to {bounds.most:g}, not {told}"
    start, stop = span(use)
    if not start < stop:
        return "stop", f"the guider would stop at {stop:g} of the steps and start at {start:g}"
    return None


def span(use: GuiderUse) -> tuple[float, float]:
    """Share of the steps from which on and until which it does what it does."""
    start, stop = GUIDERS[use.name].span
    return (start if use.start is None else use.start, stop if use.stop is None else use.stop)


def more_passes(use: GuiderUse | None) -> float:
    """Of the denoiser in the mean over the steps, beside the two of plain guidance: below 0 where it guides less."""
    if use is None:
        return 0.0
    start, stop = span(use)
    further = GUIDERS[use.name].further_passes
    return further * (stop - start) if further else (stop - start) - 1.0


NUMBERS = tuple(name for name in GuiderUse.__struct_fields__ if name not in ("name", "layers"))


def _taken(known: Guider) -> str:
    return ", ".join([*known.numbers, *(["layers"] if known.takes_layers else [])])

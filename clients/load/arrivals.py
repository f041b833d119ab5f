"""When requests leave, and which. Drawn from seeds, so that two services can be given the very same load."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from random import Random

from clients.api import Call
from clients.load.kinds import Kind, parse_kind


@dataclass(frozen=True, slots=True)
class Planned:
    at: float
    """Seconds from the start."""
    kind: Kind
    seed: int | None = None

    @property
    def call(self) -> Call:
        return self.kind.call if self.seed is None else self.kind.call.with_fields({"seed": self.seed})


@dataclass(frozen=True, slots=True)
class Limits:
    requests: int | None = None
    seconds: float | None = None


def gamma(rate: float, cv: float, draw: Random) -> Iterator[float]:
    """Without end; ``cv`` is the coefficient of variation of the gaps: 1 is a Poisson stream, above it are bursts."""
    at, shape = 0.0, cv**-2
    while True:
        at += draw.gammavariate(shape, 1 / (rate * shape))
        yield at


def plan(
    times: Iterable[float], kinds: Sequence[Kind], limits: Limits, seed: int, seeded_share: float
) -> Iterator[Planned]:
    """A kind by its weight for each of ``times``. What is drawn does not depend on when it leaves."""
    draw = Random(f"{seed}/requests")  # noqa: S311 - a load that can be repeated is the point
    weights = [kind.weight for kind in kinds]
    within = times if limits.seconds is None else takewhile(lambda at: at < float(limits.seconds or 0), times)
    for index, at in enumerate(islice(within, limits.requests)):
        kind = draw.choices(kinds, weights)[0]
        seeded = draw.random() < seeded_share and "seed" not in kind.call.fields
        yield Planned(at, kind, index if seeded else None)


def read_trace(path: Path, base: dict[str, object]) -> list[Planned]:
    """Of JSON lines ``{"at": SECONDS, …}`` with what else ``kinds.parse_kind`` reads; ``base`` is what they leave out.

    Raises ``ValueError`` that names the line, or ``OSError``.
    """
    planned = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            planned.append(Planned(float(entry.pop("at")), parse_kind(entry, base, path.parent)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{path}:{number}: not {{"at": seconds, "prompt": …}} ({error!r})') from error
    return sorted(planned, key=lambda request: request.at)

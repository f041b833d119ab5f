"""What a request costs the gateway, beside a bare handler: rows 5, 6 and 7 of docs/performance.md.

python -m benchmarks.gateway_cost [--only 5,6,7] [--rounds 6] [--requests 200] [--at-once 16] [--json FILE]
python -m benchmarks.gateway_cost --metrics

Both are processes of their own behind real connections, and take turns. Keys, limits, usage and all else are on. The
stages are real processes with the emulated engine, a hundred thousand times as fast as the profile says.

``--metrics``: two gateways instead, one with metrics switched off.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

import pybase64

from benchmarks.gateway_processes import Subject, bare_handler, first_answer, gateway
from benchmarks.http_load import load, load_and_look_in, quantile
from benchmarks.rows import Goal, Row, show, write

COMMAND = "python -m benchmarks.gateway_cost"
IDS = (5, 6, 7)
PICTURE_BYTES = 1_500_000
LARGE_AT_ONCE = 4
"""Requests under way that end in a large picture."""
ENCODINGS = 50
METRICS = Goal("<=", 1.02)


@dataclass(frozen=True, slots=True)
class Effort:
    rounds: int = 6
    requests: int = 200
    """In a round."""
    at_once: int = 16


def _row(id_: int, measure: str, case: str, value: float, unit: str, most: float) -> Row:
    return Row(id_, measure, case, value, unit, Goal("<=", most), "emulated", f"{COMMAND} --only {id_}")


def rows(effort: Effort, only: Sequence[int] = IDS, profile: str | None = None) -> Iterator[Row]:
    """Measure those rows, the emulated engine behind the gateway. Prints what they are made of."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = stack.enter_context(gateway(folder / "state", profile=profile))
        answer = first_answer(ours)
        bare = stack.enter_context(bare_handler(folder / "bare", answer))
        small = _costs((bare, ours), effort, effort.at_once) if {5, 7} & set(only) else []
        if 5 in only:
            print(f"answers of {len(answer)} bytes: {_ms(small[0])} bare, {_ms(small[1])} ours")
            case = f"{effort.at_once} at once, with keys, limits and usage"
            yield _row(5, "processor time per request", case, small[1] / small[0], "bare handlers", 3.0)
        if 6 in only:
            yield _latency(bare, ours, effort)
        if 7 in only:
            yield from _large(stack, folder, small, effort)


def metrics_rows(effort: Effort) -> Iterator[Row]:
    """Rows 5 and 6 of a gateway with metrics over those of one without."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        subjects = [
            replace(stack.enter_context(gateway(folder / name, more={"METRICS": name})), name=f"metrics: {name}")
            for name in ("false", "true")
        ]
        without, with_them = _costs(subjects, effort, effort.at_once)
        print(f"per request: {_ms(without)} without metrics, {_ms(with_them)} with")
        its, our = _latencies(subjects, effort)
        print(f"one request at a time, in the median: {_ms(its)} without, {_ms(our)} with")
    command = f"{COMMAND} --metrics"
    case, unit = f"{effort.at_once} at once, metrics on over off", "of what it is without"
    yield Row("metrics", "processor time per request", case, with_them / without, unit, METRICS, "emulated", command)
    case = "one at a time, metrics on over off"
    yield Row("metrics", "latency", case, our / its, unit, None, "emulated", command)


def _costs(subjects: Sequence[Subject], effort: Effort, at_once: int) -> list[float]:
    """Processor seconds per request of each.

    In the mean, as the kernel counts in hundredths of a second, which is much for one round of the bare handler.
    """
    for subject in subjects:
        asyncio.run(load(subject, effort.requests, at_once))  # until all is warm
    spent: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for _ in range(effort.rounds):
        for subject in subjects:
            before = subject.processor_seconds()
            asyncio.run(load(subject, effort.requests, at_once))
            spent[subject.name].append((subject.processor_seconds() - before) / effort.requests)
    return [fmean(seconds) for seconds in spent.values()]


def _latency(bare: Subject, ours: Subject, effort: Effort) -> Row:
    its, our = _latencies((bare, ours), effort)
    print(f"one request at a time, in the median: {_ms(its)} bare, {_ms(our)} ours")
    return _row(6, "latency less the bare handler's", "one at a time", (our - its) / its, "bare handlers", 3.0)


def _latencies(subjects: Sequence[Subject], effort: Effort) -> list[float]:
    """Of one request at a time, in the median."""
    taken: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for _ in range(effort.rounds):
        for subject in subjects:
            taken[subject.name] += asyncio.run(load(subject, effort.requests // 4, 1))
    return [median(seconds) for seconds in taken.values()]


def _large(stack: ExitStack, folder: Path, small: Sequence[float], effort: Effort) -> Iterator[Row]:
    """Of a picture of 1.5 MB: what it adds to the bare handler is its base64-encoding, and to send it."""
    ours = stack.enter_context(gateway(folder / "large", PICTURE_BYTES))
    picture = pybase64.b64decode(json.loads(first_answer(ours))["data"][0]["b64_json"])
    bare = stack.enter_context(bare_handler(folder / "encoding", picture, encodes=True))
    costs = _costs((bare, ours), effort, LARGE_AT_ONCE)
    added = [large - little for large, little in zip(costs, small, strict=True)]
    print(f"pictures of {len(picture) / 1e6:.2f} MB add {_ms(added[0])} bare, {_ms(added[1])} ours")
    case = f"{PICTURE_BYTES / 1e6:g} MB PNG as b64_json, {LARGE_AT_ONCE} at once"
    yield _row(7, "processor time above row 5's", case, added[1] / added[0], "bare handlers' own", 2.0)
    looks: dict[str, list[float]] = {bare.name: [], ours.name: []}
    for _ in range(effort.rounds):
        for subject in (bare, ours):
            looks[subject.name] += asyncio.run(load_and_look_in(subject, effort.requests, LARGE_AT_ONCE))
    its, our = (quantile(seconds, 0.99) for seconds in looks.values())
    began = time.process_time()
    for _ in range(ENCODINGS):
        pybase64.b64encode(picture)
    encoding = (time.process_time() - began) / ENCODINGS
    print(f"GET /healthz meanwhile, p99: {_ms(its)} bare, {_ms(our)} ours; encoding one takes {_ms(encoding)}")
    yield _row(7, "p99 of GET /healthz meanwhile", case, our * 1e3, "ms", (its + encoding) * 1e3)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_ids, default=IDS, metavar="IDS", help="comma-separated (default: 5,6,7)")
    parser.add_argument("--metrics", action="store_true", help="what metrics add, instead of rows 5 to 7")
    parser.add_argument("--rounds", type=int, default=Effort().rounds)
    parser.add_argument("--requests", type=int, default=Effort().requests, help="in a round")
    parser.add_argument("--at-once", type=int, default=Effort().at_once)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument(
        "--profile", metavar="FILE", help="write what cProfile sees of the gateway of rows 5 and 6, which slows it down"
    )
    chosen = parser.parse_args(arguments)
    effort = Effort(chosen.rounds, chosen.requests, chosen.at_once)
    found = show(metrics_rows(effort) if chosen.metrics else rows(effort, chosen.only, chosen.profile))
    if chosen.json is not None:
        write(chosen.json, found)


def _ids(given: str) -> tuple[int, ...]:
    names = given.split(",")
    if strange := [name for name in names if name not in map(str, IDS)]:
        raise argparse.ArgumentTypeError(f"{strange[0]!r} is no row of this benchmark; {', '.join(map(str, IDS))} are")
    return tuple(int(name) for name in names)


if __name__ == "__main__":
    main()

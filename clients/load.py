"""An open-loop load generator: requests leave when their time has come, however slow the answers are.

A trace is a file of JSON lines ``{"at": seconds from the start, "body": {…}}``; without one, requests of one shape
arrive as a Poisson stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from clients.address import DEFAULT, ENVIRONMENT, base_url


@dataclass(frozen=True, slots=True)
class Planned:
    at: float
    """Seconds from the start."""
    body: dict[str, object]


@dataclass(frozen=True, slots=True)
class Outcome:
    at: float
    """When it left, seconds from the start."""
    seconds: float
    """Until its answer was complete."""
    status: int
    """0: no answer."""
    code: str = ""
    """The error's code."""
    predicted_wait_ms: float | None = None


def poisson(rate: float, count: int, body: dict[str, object], seed: int) -> Iterator[Planned]:
    draw, at = random.Random(seed), 0.0  # noqa: S311 - arrivals, not secrets
    for index in range(count):
        at += draw.expovariate(rate)
        yield Planned(at, body | {"seed": index})


def read_trace(path: Path) -> list[Planned]:
    """Raises ``ValueError`` naming the line."""
    planned = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            entry = json.loads(line)
            planned.append(Planned(float(entry["at"]), dict(entry["body"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path}:{number}: not {{"at": seconds, "body": {{…}}}} ({error})') from error
    return planned


async def run(url: str, trace: Sequence[Planned], *, timeout_seconds: float, key: str = "") -> list[Outcome]:
    """Send ``trace`` to ``url`` (ending in ``/v1``) at its own pace; the outcomes in the order of the trace."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(headers=headers, timeout=timeout_seconds, limits=limits) as client:
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            tasks = []
            for planned in trace:
                await asyncio.sleep(max(0.0, start + planned.at - time.perf_counter()))
                tasks.append(group.create_task(_one(client, url, planned.body, start)))
        return [task.result() for task in tasks]


async def _one(client: httpx.AsyncClient, url: str, body: dict[str, object], start: float) -> Outcome:
    begun = time.perf_counter()
    try:
        answer = await client.post(f"{url}/images/generations", json=body)
    except httpx.HTTPError as error:
        return Outcome(begun - start, time.perf_counter() - begun, 0, type(error).__name__)
    took = time.perf_counter() - begun
    predicted = answer.headers.get("x-predicted-wait-ms")
    return Outcome(begun - start, took, answer.status_code, _code(answer), float(predicted) if predicted else None)


def _code(answer: httpx.Response) -> str:
    if answer.is_success:
        return ""
    try:
        return str(answer.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "unreadable"


def summary(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Throughput in pictures' requests per second, latencies in seconds, and what else was answered."""
    good = sorted(outcome.seconds for outcome in outcomes if outcome.status == 200)
    end = max((outcome.at + outcome.seconds for outcome in outcomes), default=0.0)
    others = Counter(f"{outcome.status} {outcome.code}".strip() for outcome in outcomes if outcome.status != 200)
    return {
        "requests": len(outcomes),
        "succeeded": len(good),
        "requests_per_second": len(good) / end if end else 0.0,
        "mean_seconds": sum(good) / len(good) if good else None,
        **{f"p{share}_seconds": _quantile(good, share / 100) for share in (50, 90, 99)},
        "others": dict(others),
    }


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    body: dict[str, object] = {"prompt": args.prompt, "size": args.size, "num_inference_steps": args.steps}
    if args.model:
        body["model"] = args.model
    try:
        trace = read_trace(args.trace) if args.trace else list(poisson(args.rate, args.requests, body, args.seed))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    key = os.environ.get("OPENAI_API_KEY", "")
    outcomes = asyncio.run(run(args.url, trace, timeout_seconds=args.timeout, key=key))
    if args.output:
        args.output.write_text("".join(f"{json.dumps(asdict(outcome))}\n" for outcome in outcomes))
    print(json.dumps(summary(outcomes), indent=2))
    if not any(outcome.status == 200 for outcome in outcomes):
        print(f"none of the {len(outcomes)} requests succeeded", file=sys.stderr)
        return 1
    return 0 if all(outcome.status for outcome in outcomes) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m clients load", description=__doc__, epilog=ENVIRONMENT)
    parser.add_argument("--url", type=base_url, default=DEFAULT, help="of the API (default: %(default)s)")
    parser.add_argument("--trace", type=Path, help="JSON lines; replaces the options below")
    parser.add_argument("--rate", type=float, default=1.0, help="requests per second")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--prompt", default="a large red circle in the center on a white background")
    parser.add_argument("--model")
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds")
    parser.add_argument("-o", "--output", type=Path, help="write every outcome there, JSON lines")
    return parser

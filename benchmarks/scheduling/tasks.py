"""Independent runs, spread over processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

Figures = dict[str, float]
Key = tuple[str, ...]
"""What was run: names of workload, contender and the like."""


@dataclass(frozen=True, slots=True)
class Task:
    """``function(*key, seed, quick)``; the function is importable by its name, so that other processes can call it."""

    function: Callable[..., Figures]
    key: Key
    seed: int
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Effort:
    seeds: int
    quick: bool = False

    def tasks(self, function: Callable[..., Figures], keys: Iterable[Key]) -> list[Task]:
        return [Task(function, key, seed, self.quick) for key in keys for seed in range(1, self.seeds + 1)]


class Results:
    """Figures of every run, by function, key and seed."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, Key], dict[int, Figures]] = {}

    def add(self, function: str, key: Key, seed: int, figures: Figures) -> None:
        self._found.setdefault((function, key), {})[seed] = figures

    def of(self, function: Callable[..., Figures], *key: str) -> list[Figures]:
        """By rising seed."""
        return [figures for _, figures in sorted(self._found[(_name(function), key)].items())]

    def values(self, function: Callable[..., Figures], *key: str, figure: str) -> list[float]:
        return [figures[figure] for figures in self.of(function, *key)]

    def save(self, path: Path) -> None:
        """One line per run."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (
            json.dumps([function, key, seed, figures], ensure_ascii=False)
            for (function, key), runs in self._found.items()
            for seed, figures in sorted(runs.items())
        )
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def load(self, path: Path) -> None:
        """Add what was saved."""
        for line in path.read_text(encoding="utf-8").splitlines():
            function, key, seed, figures = json.loads(line)
            self.add(function, tuple(key), seed, figures)


def run_all(tasks: Sequence[Task], processes: int) -> Results:
    """Run them all; a run that fails is fatal."""
    results = Results()
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = {pool.submit(run_one, task): task for task in tasks}
        for number, future in enumerate(as_completed(futures), 1):
            task = futures[future]
            results.add(_name(task.function), task.key, task.seed, future.result())
            if number % max(1, len(tasks) // 10) == 0:
                took = time.monotonic() - began
                print(f"  {number} of {len(tasks)} runs, {took:.0f} s", file=sys.stderr, flush=True)
    return results


def run_one(task: Task) -> Figures:
    return task.function(*task.key, task.seed, task.quick)


def default_processes() -> int:
    return min(2, os.cpu_count() or 1)


def _name(function: Callable[..., Figures]) -> str:
    return f"{function.__module__}.{function.__qualname__}"

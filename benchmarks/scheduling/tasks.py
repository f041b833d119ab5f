"""Independent runs, spread over processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

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

    def __init__(self, found: Mapping[Task, Figures]):
        self._found: dict[tuple[str, Key], dict[int, Figures]] = {}
        for task, figures in found.items():
            self._found.setdefault((_name(task.function), task.key), {})[task.seed] = figures

    def of(self, function: Callable[..., Figures], *key: str) -> list[Figures]:
        """By rising seed."""
        return [figures for _, figures in sorted(self._found[(_name(function), key)].items())]

    def values(self, function: Callable[..., Figures], *key: str, figure: str) -> list[float]:
        return [figures[figure] for figures in self.of(function, *key)]


def run_all(tasks: Sequence[Task], processes: int) -> Results:
    """Run them all; a run that fails is fatal."""
    found: dict[Task, Figures] = {}
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = {pool.submit(run_one, task): task for task in tasks}
        for number, future in enumerate(as_completed(futures), 1):
            found[futures[future]] = future.result()
            if number % max(1, len(tasks) // 20) == 0:
                took = time.monotonic() - began
                print(f"  {number} of {len(tasks)} runs, {took:.0f} s", file=sys.stderr, flush=True)
    return Results(found)


def run_one(task: Task) -> Figures:
    return task.function(*task.key, task.seed, task.quick)


def default_processes() -> int:
    return min(2, os.cpu_count() or 1)


def _name(function: Callable[..., Figures]) -> str:
    return f"{function.__module__}.{function.__qualname__}"

"""The measurements of one model: stage times as a cost profile, batches, and jobs in sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter

import msgspec
import torch

from benchmarks.gpu import faster, lighter
from benchmarks.gpu.overlap import in_sequence
from benchmarks.gpu.records import Records
from stage_server.engine.base import NamedValues, StageJob
from stage_server.engine.compiled import Compiler
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.profiling.command import describe
from stage_server.profiling.document import render
from stage_server.profiling.measure import USUAL, Bench, Measured, Size, inputs_of
from stage_server.profiling.shapes import read_shapes
from stage_server.profiling.together import run_together
from wire.params import ImageParams
from wire.types import REQUIRED, Role

STEPS = 4
"""Of dit jobs in batches and sequences, where the profile has the time of a single step already."""


class TurnWatch:
    """Turns at a device that nobody else wants; remembers the seconds of each."""

    def __init__(self) -> None:
        self.turns: list[float] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        began = perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.turns.append(perf_counter() - began)


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    sizes: Sequence[Size]
    batches: Sequence[int]
    """Members."""
    jobs: int
    """In a sequence."""


FULL = Extent(((512, 512), (768, 768), (1024, 1024), (1536, 1536)), (1, 2, 4, 8), 8)
TINY = Extent(((64, 64), (128, 128)), (1, 2), 3)


@dataclass(slots=True)
class Subject:
    """One model: an engine that can hold all of its roles, and what became of earlier parts."""

    engine: DiffusersEngine
    name: str
    extent: Extent
    repeats: int
    make: lighter.Make
    """Further engines of the model, with other settings."""
    compiler: Compiler | None = None
    measured: Measured | None = field(default=None)

    def stages(self, records: Records, folder: Path) -> None:
        """Also writes the profile. The host's memory holds what roles give up, so loading is from there."""
        self.measured = Bench(self.engine, self.extent.sizes, self.repeats).run()
        for role, times in self.measured.times.items():
            for size, seconds in times.seconds.items():
                records.add(
                    "stages", self.name, role=role, size=_shown(size), seconds=seconds, peak_bytes=times.peak_bytes
                )
            records.add("load", self.name, role=role, seconds=times.load_seconds)
        about = describe(self.engine, self.engine.describe(), "host memory, weights being random")
        text = render(about, self.measured, read_shapes(self.measured))
        (folder / f"{self.name.lower()}.toml").write_text(text, encoding="utf-8")

    def batches(self, records: Records, folder: Path) -> None:  # noqa: ARG002
        """Of every role. Decoder jobs end with the picture's encoding as PNG, and random weights draw noise."""
        self.engine.set_roles(frozenset(REQUIRED))
        for role, size, params, inputs in self._jobs(REQUIRED):
            for members in self.extent.batches:
                self._seconds(role, params, inputs, members)  # does not count: it is found out how they are joined
                seconds = median(self._seconds(role, params, inputs, members) for _ in range(self.repeats))
                records.add(
                    "batches",
                    self.name,
                    role=role,
                    size=_shown(size),
                    members=members,
                    seconds=seconds,
                    peak_bytes=self.engine.peak_bytes(),
                )

    def _seconds(self, role: Role, params: ImageParams, inputs: NamedValues, members: int) -> float:
        """From the first call to the end of the last of jobs that compute together."""
        jobs = [StageJob(role, msgspec.structs.replace(params, seed=seed), share=True) for seed in range(members)]
        _, watches = run_together(self.engine, [(job, inputs) for job in jobs])
        return max(watch.ticks[-1] for watch in watches) - min(watch.ticks[0] for watch in watches)

    def overlap(self, records: Records, folder: Path) -> None:  # noqa: ARG002
        """Of the roles that have inputs."""
        self.engine.set_roles(frozenset(REQUIRED))
        jobs = self.extent.jobs
        for (role, size, params, inputs), prefetch in product(self._jobs((Role.DIT, Role.DECODER)), (False, True)):
            found = in_sequence(self.engine, role, params, inputs, jobs=jobs, prefetch=prefetch)
            phases = {
                name: sum(getattr(timing, name) for timing in found.timings)
                for name in ("fetch", "wait", "compute", "publish")
            }
            records.add(
                "overlap",
                self.name,
                role=role,
                size=_shown(size),
                prefetch=prefetch,
                jobs=jobs,
                seconds=found.seconds,
                **phases,
            )

    def moves(self, records: Records, folder: Path) -> None:  # noqa: ARG002
        """Each role out of host memory, beside the others, which stay."""
        everything = frozenset(REQUIRED)
        self.engine.set_roles(everything)
        for role in REQUIRED:
            self.engine.set_roles(everything - {role})
            for _ in range(self.repeats):
                watch, began = TurnWatch(), perf_counter()
                self.engine.set_roles(everything, watch)
                seconds = perf_counter() - began
                warm_up, swap = watch.turns
                records.add("moves", self.name, role=role, seconds=seconds, warm_up_seconds=warm_up, stop_seconds=swap)
                self.engine.set_roles(everything - {role})

    def step_caches(self, records: Records, folder: Path) -> None:  # noqa: ARG002
        for size, params, inputs in self._denoising():
            tell = faster.told(records, "step_caches", self.name, size)
            faster.step_caches(self.engine, params, inputs, self.repeats, tell)

    def compiled(self, records: Records, folder: Path) -> None:  # noqa: ARG002
        if self.compiler is None:
            records.add("compiled", self.name, skipped="tiny models are not compiled")
            return
        for size, params, inputs in self._denoising():
            tell = faster.told(records, "compiled", self.name, size)
            faster.compiled(self.engine, self.compiler, params, inputs, self.repeats, tell)

    def attention(self, records: Records, folder: Path) -> None:  # noqa: ARG002
        for size, params, inputs in self._denoising():
            tell = faster.told(records, "attention", self.name, size)
            faster.attention(self.engine, params, inputs, self.repeats, tell)

    def formats(self, records: Records, folder: Path) -> None:  # noqa: ARG002
        self._lighter("formats", lighter.FORMATS, records)

    def offloading(self, records: Records, folder: Path) -> None:  # noqa: ARG002
        self._lighter("offloading", lighter.OFFLOADING, records)

    def _lighter(self, part: str, ways: lighter.Ways, records: Records) -> None:
        jobs = [(_shown(size), params, inputs) for _, size, params, inputs in self._jobs((Role.DIT,))]
        tell = partial(records.add, part, self.name, role=Role.DIT)
        lighter.lighter(self.engine, self.make, ways, jobs, self.repeats, tell)

    def _denoising(self) -> Iterator[tuple[str, ImageParams, NamedValues]]:
        self.engine.set_roles(frozenset(REQUIRED))
        for _, size, params, inputs in self._jobs((Role.DIT,)):
            yield _shown(size), params, inputs

    def _jobs(self, roles: Sequence[Role]) -> Iterator[tuple[Role, Size, ImageParams, NamedValues]]:
        """At the smallest size and that of the middle, as far as stages were measured there."""
        if self.measured is None:
            raise RuntimeError("its stages could not be measured, which make the inputs of the other parts")
        outputs = self.measured.outputs
        sizes = [size for size in self.extent.sizes if size in outputs[Role.DIT]]
        steerable = "guidance_scale" in self.engine.describe().workflows[0].inputs
        for role, size in product(roles, dict.fromkeys((sizes[0], sizes[len(sizes) // 2]))):
            params = ImageParams(
                prompt=USUAL,
                width=size[0],
                height=size[1],
                num_inference_steps=STEPS,
                guidance_scale=1.0 if steerable else None,
            )
            yield role, size, params, inputs_of(role, [made[size] for made in outputs.values()])


def _shown(size: Size) -> str:
    return f"{size[0]}x{size[1]}"

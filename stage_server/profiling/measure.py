"""Times the jobs of one real engine: a few sizes of each role, one role resident at a time, everything warm."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from time import perf_counter

from PIL import Image

from stage_server.engine.base import Engine, EngineError, NamedValues, Outputs, StageJob
from stage_server.profiling.together import Stopwatch, run_together, seconds_together
from wire.params import ImageParams, ModelInfo, Workflow
from wire.references import References
from wire.types import REQUIRED, Role

WORKFLOW = "text2image"
SHORT = "a red circle"
USUAL = "a large red circle in the center of a white background beside a small blue square"
"""A prompt of usual length, which is what jobs are timed with."""
COLORS = ("red", "blue", "green", "black")
"""Of the circle in the prompts of jobs that compute together, which are as many; they are of one length, but differ."""
GUIDANCE = 3.0
"""Where the model names no scale of its own above 1."""
TWO_PASSES = 1.5
"""A step with guidance that takes this many times as long runs the transformer twice."""

Size = tuple[int, int]
"""Width, height in pixels."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class RoleTimes:
    """Of one role. Times are seconds; of dit jobs those of one forward pass."""

    load_seconds: float
    seconds: dict[Size, float] = field(default_factory=dict)
    batch_marginal: dict[Size, float] = field(default_factory=dict)
    """Cost of one further job that computes together with others, in jobs."""
    peak_bytes: int = 0


@dataclass(slots=True)
class Measured:
    times: dict[Role, RoleTimes]
    outputs: dict[Role, dict[Size, Outputs]]
    """Of the encoder and the dit; the encoder's with the usual prompt."""
    short_prompt: Outputs
    """The encoder's with the short one."""
    short_seconds: float
    image_seconds: dict[Size, float]
    """Of encoder jobs with a picture, by the size at which it is encoded; empty where the model takes none."""
    guidance_passes: int
    """Forward passes per step with guidance."""
    pictures: dict[Size, Outputs]
    """Of the decoder."""


class Bench:
    """``repeats`` measurements of each job, after one that does not count."""

    def __init__(self, engine: Engine, sizes: Sequence[Size], repeats: int) -> None:
        self._engine = engine
        self._info: ModelInfo = engine.describe()
        self._sizes = sorted(sizes, key=lambda size: size[0] * size[1])
        self._repeats = repeats
        self._steerable = "guidance_scale" in _workflow(self._info, WORKFLOW).inputs
        self._scale = max(self._info.default_guidance or 0.0, GUIDANCE)
        self._companions: dict[tuple[Role, Size], list[Outputs]] = {}
        """Of jobs that computed together, which those of the next role read."""

    def run(self) -> Measured:
        """Raises ``LoadError``, or ``EngineError`` where not even the smallest size can be run."""
        encoder = loaded(self._engine, Role.ENCODER)
        short, short_seconds = self._timed(self._job(Role.ENCODER, self._sizes[0], prompt=SHORT))
        guided, _ = self._timed(self._job(Role.ENCODER, self._sizes[0], guidance=self._scale))
        embedded = self._sweep(encoder, Role.ENCODER)
        image_seconds = self._image_encoding()
        dit = loaded(self._engine, Role.DIT)
        passes = self._guidance_passes(guided)
        latents = self._sweep(dit, Role.DIT, embedded)
        decoder = loaded(self._engine, Role.DECODER)
        pictures = self._sweep(decoder, Role.DECODER, latents, embedded)
        times = {Role.ENCODER: encoder, Role.DIT: dit, Role.DECODER: decoder}
        outputs = {Role.ENCODER: embedded, Role.DIT: latents}
        return Measured(times, outputs, short, short_seconds, image_seconds, passes, pictures)

    def _sweep(self, times: RoleTimes, role: Role, *sources: Mapping[Size, Outputs]) -> dict[Size, Outputs]:
        """Time every size; the largest that do not fit the device are left out."""
        results: dict[Size, Outputs] = {}
        for size in (size for size in self._sizes if all(size in source for source in sources)):
            inputs = inputs_of(role, [source[size] for source in sources])
            job = self._job(role, size, guidance=1.0 if role is Role.DIT else None)
            try:
                results[size], times.seconds[size] = self._timed(job, inputs)
            except EngineError as error:
                if not results:
                    raise
                log.warning("%s of %dx%d is left out: %s", role, *size, error)
                break
            times.peak_bytes = max(times.peak_bytes, self._engine.peak_bytes())
            log.info("%s of %dx%d: %.4g s", role, *size, times.seconds[size])
        for size in (min(results, key=_area), max(results, key=_area)):
            self._companions[role, size] = [results[size]] * len(COLORS)  # unless they do compute together
            times.batch_marginal[size] = self._marginal(role, size, times.seconds[size])
            log.info("%s of %dx%d: one more adds %.2f of a job", role, *size, times.batch_marginal[size])
        return results

    def _timed(self, job: StageJob, inputs: NamedValues | None = None) -> tuple[Outputs, float]:
        """Outputs, and the median: of a forward pass for dit jobs, of the whole job otherwise."""
        if job.role is Role.DIT:
            return self._steps(job, inputs or {})
        return whole_runs(self._engine, job, inputs or {}, self._repeats)

    def _steps(self, job: StageJob, inputs: NamedValues) -> tuple[Outputs, float]:
        """From the end of each step to that of the next."""
        watch = Stopwatch()
        outputs = self._engine.run(job, inputs, watch)
        return outputs, median(after - before for before, after in pairwise(watch.ticks))

    def _marginal(self, role: Role, size: Size, alone: float) -> float:
        """``alone``: seconds of a step, or of an encoding or decoding. 1 where several do not fit the device."""
        durations = []
        try:
            for _ in range(1 if role is Role.DIT else 1 + self._repeats):  # a job's steps are repetitions already
                jobs = [self._companion(role, size, number) for number in range(len(COLORS))]
                self._companions[role, size], watches = run_together(self._engine, jobs)
                durations.append(seconds_together(role, watches))
        except EngineError as error:
            log.warning("%d %s jobs do not compute together: %s", len(COLORS), role, error)
            return 1.0
        together = median(durations[1:] or durations)
        return max(0.0, (together / alone - 1) / (len(COLORS) - 1))

    def _companion(self, role: Role, size: Size, number: int) -> tuple[StageJob, NamedValues]:
        prompt = USUAL.replace(COLORS[0], COLORS[number])
        job = self._job(role, size, prompt=prompt, guidance=1.0, seed=number, share=True)
        earlier = REQUIRED[: REQUIRED.index(role)]
        return job, inputs_of(role, [self._companions[source, size][number] for source in earlier])

    def _guidance_passes(self, guided: Outputs) -> int:
        """``guided``: made by the encoder for a job with guidance."""
        if not self._steerable:
            return 1
        inputs = inputs_of(Role.DIT, [guided])
        _, without = self._timed(self._job(Role.DIT, self._sizes[0], guidance=1.0), inputs)
        _, with_guidance = self._timed(self._job(Role.DIT, self._sizes[0], guidance=self._scale), inputs)
        return 2 if with_guidance > TWO_PASSES * without else 1

    def _image_encoding(self) -> dict[Size, float]:
        """Of the first workflow that needs one uploaded picture and nothing else."""
        found = next((w for w in self._info.workflows if "image" in w.inputs and "mask_image" not in w.inputs), None)
        results: dict[Size, float] = {}
        if found is None:
            return results
        rule = found.references or References()
        for size in (self._sizes[0], self._sizes[-1]):
            job = self._job(Role.ENCODER, size, workflow=found.name)
            try:
                timed = StageJob(job.role, job.params, {"image": _png(size)})
                _, results[rule.size(size, size)] = self._timed(timed)
            except EngineError as error:
                log.warning("no picture of %dx%d is encoded: %s", *size, error)
        return results

    def _job(
        self,
        role: Role,
        size: Size,
        *,
        prompt: str = USUAL,
        guidance: float | None = None,
        workflow: str = WORKFLOW,
        seed: int = 0,
        share: bool = False,
    ) -> StageJob:
        """Without ``guidance`` it is the model's own."""
        params = ImageParams(
            workflow=workflow,
            prompt=prompt,
            width=size[0],
            height=size[1],
            num_inference_steps=self._repeats + 2,
            guidance_scale=guidance if self._steerable else None,
            seed=seed,
        )
        return StageJob(role, params, share=share)


def loaded(engine: Engine, role: Role) -> RoleTimes:
    """Alone. The second time counts: the files are then in the system's cache, and libraries are imported."""
    engine.set_roles(frozenset({role}))
    engine.set_roles(frozenset())
    began = perf_counter()
    engine.set_roles(frozenset({role}))
    return RoleTimes(perf_counter() - began)


def whole_runs(engine: Engine, job: StageJob, inputs: NamedValues, repeats: int) -> tuple[Outputs, float]:
    """Outputs, and the median of ``repeats`` jobs after one that does not count."""
    durations = []
    for _ in range(1 + repeats):
        began = perf_counter()
        outputs = engine.run(job, inputs, Stopwatch())
        durations.append(perf_counter() - began)
    return outputs, median(durations[1:])


def _workflow(info: ModelInfo, name: str) -> Workflow:
    found = next((workflow for workflow in info.workflows if workflow.name == name), None)
    if found is None:
        raise EngineError(f"{info.name} makes no pictures from text alone: there is nothing to time")
    return found


def inputs_of(role: Role, sources: Sequence[Outputs]) -> NamedValues:
    return {name: value for outputs in sources for name, value in outputs.get(role, {}).items()}


def _area(size: Size) -> int:
    return size[0] * size[1]


def _png(size: Size) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize(size).save(buffer, "PNG")
    return buffer.getvalue()

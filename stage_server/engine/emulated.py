"""An engine that takes a profile's time instead of computing, and none of the processor's.

Its tensors have the true sizes and its pictures the true dimensions; all of them are blank. But the first pixels of a
picture, and text chunks in it, say what it was made from, so that whoever gets it can tell whether it is theirs: the
seed that the decoder was told, and the digest of the prompt that the encoder was told, as it came through the dit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from threading import Event, Lock
from time import perf_counter

from stage_server.engine.base import (
    HOST_BANDWIDTH,
    STEP,
    DeviceTurn,
    EngineError,
    HandOver,
    JobCancelled,
    JobControl,
    LoadError,
    NamedValues,
    OutOfMemory,
    Outputs,
    Prepared,
    Preview,
    StageJob,
    Unfinished,
)
from stage_server.engine.emulated_values import (
    EDITS,
    REWRITTEN,
    blank_outputs,
    check_inputs,
    emulated_enhancer,
    emulated_upscaler,
    picture_bound,
    workflows,
)
from stage_server.engine.forms import Forms
from stage_server.engine.profile import GIGABYTE, TensorSpec, load_profile
from stage_server.engine.rendezvous import Call, Rendezvous, unattended
from wire.params import ImageParams, ModelInfo
from wire.previews import preview_steps
from wire.references import References, png_size
from wire.to_gateway import RoleInfo
from wire.types import MAX_PROMPT, Role
from wire.values import Value

ACTIVATION_PIXELS = 2048 * 2048
"""A profile's ``activation_gb`` is taken as that of one image of this size; larger and several jobs need more."""

HEADER_BYTES = 4096
"""Room for names, shapes and alignment in the bound of an output's size."""

SEQUENCE_TOKENS = "sequence_tokens"
"""Crosses from encoder to dit: only the encoder is sent the pictures of an edit, which lengthen the sequence."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a job wants the device for: a step, an encoding or a decoding."""

    due: float
    """When it begins, on ``perf_counter``; earlier than now by what the last wake-up was late."""
    seconds: float
    """Alone."""
    marginal: float
    """What each further job that computes with it adds, in jobs."""
    check: Callable[[], None]


class EmulatedEngine:
    """``time_scale`` 0.1 makes everything ten times faster than the profile says."""

    def __init__(
        self,
        profile: Path,
        time_scale: float = 1.0,
        served_name: str = "",
        weight_cache_bytes: int | None = None,
        together: Mapping[Role, int] | None = None,
    ) -> None:
        """``weight_cache_bytes`` of emulated host memory keep weights; None: all of them. Of each role as many jobs
        compute at once as ``together`` says, 1 where it says nothing."""
        self._profile = load_profile(profile)
        self._scale = time_scale
        self._name = served_name or self._profile.model.name
        self._memory = int(self._profile.device.memory_gb * GIGABYTE)
        self._roles: frozenset[Role] = frozenset()
        self._host_bytes = weight_cache_bytes
        self._on_host: tuple[Role, ...] = ()
        """Roles whose weights are in host memory, the one used last at the end."""
        self._changing = Lock()
        self._peak = 0
        self._together = {role: (together or {}).get(role, 1) for role in Role}
        self._rendezvous: Rendezvous[Stretch] = Rendezvous(self._pass_together)
        self._lock = Lock()
        self._on_device = 0
        """Pixels of all jobs that compute."""
        self._closed = Event()
        self.beside: Callable[[], int] = lambda: 0
        self.forms = Forms()

    @property
    def resident_bytes(self) -> int:
        return self._resident(self._roles)

    @property
    def roles(self) -> frozenset[Role]:
        return self._roles

    @property
    def device_class(self) -> str:
        return self._profile.device.device_class

    @property
    def host_buffer(self) -> None:
        return None

    @property
    def shares_guidance(self) -> bool:
        return False

    @property
    def software(self) -> str:
        return "emulated"

    @property
    def device_uuid(self) -> str:
        return ""

    @property
    def memory_bytes(self) -> int:
        return self._memory

    def describe(self) -> ModelInfo:
        shape = self._profile.model
        return ModelInfo(
            name=self._name,
            key=f"{self._name}@{self._profile.digest()}",
            family="emulated",
            dtype=self._profile.device.precision,
            workflows=workflows(self._profile),
            size_multiple=shape.size_multiple,
            default_steps=shape.default_steps,
            default_guidance=shape.default_guidance,
            upscaler=emulated_upscaler(self._profile),
            enhancer=emulated_enhancer(self._profile),
            step_caches={
                level: f"emulated, in {share:g} of the time" for level, share in self._profile.dit.step_caches.items()
            },
        )

    def capable(self) -> dict[Role, RoleInfo]:
        return {role: self._role_info(role) for role in self._profile.roles}

    @property
    def warm(self) -> frozenset[Role]:
        return frozenset(self._on_host) - self._roles

    def preload(self, roles: frozenset[Role], turn: DeviceTurn = nullcontext) -> None:  # noqa: ARG002
        with self._changing:
            for role in sorted(roles - self._roles):
                self._read(role)

    def set_roles(self, roles: frozenset[Role], turn: DeviceTurn = nullcontext) -> None:
        """Where both sets of weights fit the device, the roles that go are held until the others are there."""
        with self._changing:
            self._check_fits(roles)
            for role in sorted(roles - self._roles):
                self._read(role)
            both = roles | self._roles
            if self._resident(both) + self._activation(both) + self.beside() > self._memory:
                self._roles &= roles
            self._wait(sum(map(self._copy_seconds, roles - self._roles)))
            with turn():
                self._roles = roles

    def _check_fits(self, roles: frozenset[Role]) -> None:
        needed = self._resident(roles) + self._activation(roles) + self.beside()
        if needed > self._memory:
            raise LoadError(
                f"{' + '.join(sorted(roles))} need {needed / GIGABYTE:.1f} GB for weights and activations, "
                f"the emulated {self.device_class} has {self._memory / GIGABYTE:.1f} GB"
            )

    def _read(self, role: Role) -> None:
        """Into host memory, where it stays as far as there is room for it and others used later."""
        if role not in self._on_host:
            self._wait(self._profile.costs(role).load_seconds - self._copy_seconds(role))
        kept = (*(other for other in self._on_host if other is not role), role)
        while self._host_bytes is not None and self._resident(frozenset(kept)) > self._host_bytes:
            kept = kept[1:]
        self._on_host = kept

    def _copy_seconds(self, role: Role) -> float:
        costs = self._profile.costs(role)
        return min(costs.load_seconds, costs.weight_bytes / HOST_BANDWIDTH)

    def output_bound(self, job: StageJob) -> int:
        params, tensors = job.params, self._tensors(job.role)
        size = sum(tensor.nbytes(self._extents(params)) for tensor in tensors)
        return size + picture_bound(self._profile, job.role, params) + HEADER_BYTES * (1 + len(tensors))

    def prepare(self, job: StageJob, inputs: NamedValues) -> Prepared:
        return partial(self.run, job, inputs)

    def run(self, job: StageJob, inputs: NamedValues, control: JobControl) -> Outputs:
        check_inputs(self._profile, job.role, inputs)
        share = job.share and self._together[job.role] > 1
        with self._occupied(job), self._rendezvous.attended() if share else nullcontext():
            match job.role:
                case Role.ENHANCER:
                    self._enhance(job, share, control)
                case Role.ENCODER:
                    self._compute(job, share, self._profile.encode_seconds(*self._uploaded(job)), control)
                    self._count_words(job, control)
                case Role.DIT:
                    self._denoise(job, share, inputs, control)
                case Role.DECODER:
                    self._compute(job, share, self._profile.decode_seconds(job.params), control)
                case Role.UPSCALER:
                    self._compute(job, share, self._profile.upscale_seconds(job.params), control)
        control.device_done()
        outputs = blank_outputs(self._profile, job.role, job.params, inputs)
        if job.role is Role.ENCODER and (lengthened := self._sequence_tokens(job)):
            return _with_dit_value(outputs, SEQUENCE_TOKENS, lengthened)
        return outputs

    def peak_bytes(self) -> int:
        return self._peak

    def close(self) -> None:
        """Whatever still waits, waits no more."""
        self._closed.set()

    # --- time ---

    def _wait(self, seconds: float) -> None:
        self._closed.wait(seconds * self._scale)

    def _denoise(self, job: StageJob, share: bool, inputs: NamedValues, control: JobControl) -> None:
        """Steps end on a grid, so that late wake-ups do not add up; pauses shift the grid."""
        steps, due = self._profile.steps(job.params), perf_counter()
        away = self._rendezvous.away if share else unattended
        seconds = self._profile.step_seconds(job.params, _number(inputs, SEQUENCE_TOKENS))
        for step in range(1 + _steps_done(job), steps + 1):
            due = self._compute(job, share, seconds, control, due)
            reported = perf_counter()
            self._show(job, inputs, step, steps, control)
            try:
                control.step_done(step, steps)
                if step < steps and control.wanted():
                    with away() as back:
                        control.pause(step, back)
            except HandOver:
                left = blank_outputs(self._profile, Role.DIT, job.params, inputs).get(Role.DECODER, {})
                raise Unfinished({**left, STEP: step}) from None
            due += perf_counter() - reported

    def _compute(
        self, job: StageJob, share: bool, seconds: float, control: JobControl, due: float | None = None
    ) -> float:
        """Pass the time of one call of a module; when it was due to end. ``due``: when it begins, now if not given."""
        control.check()
        marginal = self._profile.costs(job.role).marginal(self._profile.model.tokens(job.params))
        stretch = Stretch(perf_counter() if due is None else due, seconds * self._scale, marginal, control.check)
        if share:
            call = self._rendezvous.call(stretch)
            control.computed(call.company)
            return float(str(call.result))
        control.computed(1)
        return self._passed([stretch])

    def _pass_together(self, calls: Sequence[Call[Stretch]]) -> None:
        for call in calls:
            try:
                call.work.check()
            except JobCancelled as cancelled:
                call.fail(cancelled)
        going = [call for call in calls if not call.has_outcome]
        ended = self._passed([call.work for call in going])
        for call in going:
            call.company = len(going)
            call.succeed(ended)

    def _passed(self, stretches: Sequence[Stretch]) -> float:
        """Together they take as long as the longest, and a share of each of the others."""
        longest = max(stretches, key=lambda stretch: stretch.seconds, default=None)
        if longest is None:
            return perf_counter()
        others = sum(stretch.seconds * stretch.marginal for stretch in stretches if stretch is not longest)
        due = max(stretch.due for stretch in stretches) + longest.seconds + others
        self._closed.wait(max(0.0, due - perf_counter()))
        return due

    def _show(self, job: StageJob, inputs: NamedValues, step: int, steps: int, control: JobControl) -> None:
        wanted = preview_steps(steps, job.params.previews)
        if step not in wanted:
            return
        values = blank_outputs(self._profile, Role.DIT, job.params, inputs).get(Role.DECODER)
        if values:
            control.preview(Preview(wanted.index(step), step, steps, values))

    def _enhance(self, job: StageJob, share: bool, control: JobControl) -> None:
        enhancer, prompt = emulated_enhancer(self._profile), job.params.prompt
        tokens = enhancer.tokens(prompt) if enhancer is not None else 0
        self._compute(job, share, self._profile.enhance_seconds(tokens), control)
        control.rewritten((prompt + REWRITTEN)[:MAX_PROMPT])

    def _count_words(self, job: StageJob, control: JobControl) -> None:
        """There is no tokenizer; a word stands for a token."""
        words = len(job.params.prompt.split())
        control.prompt_read(words, max(0, words - (job.params.max_sequence_length or words)))

    def _uploaded(self, job: StageJob) -> tuple[int, int]:
        """Pixels that the autoencoder encodes, and tokens that pictures add to the prompt."""
        answer = (job.params.width, job.params.height)
        sizes = [png_size(data) or answer for data in job.images.values()]
        rule = self._rule(job)
        return sum(prod(rule.size(size, answer)) for size in sizes), sum(map(rule.prompt_tokens, sizes))

    def _sequence_tokens(self, job: StageJob) -> int:
        """That the uploaded pictures lengthen the dit's sequence by, as the scheduler counts them."""
        pixels, tokens = self._uploaded(job)
        in_sequence = pixels if self._rule(job).in_sequence else 0
        return -(-in_sequence // self._profile.model.pixels_per_token**2) + tokens

    def _rule(self, job: StageJob) -> References:
        rule = self._profile.model.references if job.params.workflow == EDITS else None
        return rule or References()

    # --- memory ---

    def _resident(self, roles: frozenset[Role]) -> int:
        return sum(self._profile.costs(role).weight_bytes for role in roles)

    def _activation(self, roles: frozenset[Role]) -> int:
        """Of one job."""
        return max((self._profile.costs(role).activation_bytes for role in roles), default=0)

    @contextmanager
    def _occupied(self, job: StageJob) -> Iterator[None]:
        """With the memory that it takes beside the weights and whatever else computes. Raises ``OutOfMemory``."""
        pixels = job.params.height * job.params.width
        with self._lock:
            self._on_device += pixels
            needed = int(self._profile.costs(job.role).activation_bytes * self._on_device / ACTIVATION_PIXELS)
            self._peak = self._resident(self._roles) + needed
        try:
            free = self._memory - self._resident(self._roles)
            if needed > free:
                raise OutOfMemory(
                    f"{job.params.width}x{job.params.height} beside what computes already needs "
                    f"{needed / GIGABYTE:.1f} GB, {free / GIGABYTE:.1f} GB are free beside the weights"
                )
            yield
        finally:
            with self._lock:
                self._on_device -= pixels

    # --- values ---

    def _tensors(self, role: Role) -> tuple[TensorSpec, ...]:
        return self._profile.costs(role).outputs

    def _extents(self, params: ImageParams) -> dict[str, int]:
        return self._profile.model.extents(params)

    def _role_info(self, role: Role) -> RoleInfo:
        costs = self._profile.costs(role)
        return RoleInfo(
            weight_bytes=costs.weight_bytes,
            activation_bytes=costs.activation_bytes,
            load_seconds=costs.load_seconds * self._scale,
            together=self._together[role],
            warm_seconds=self._copy_seconds(role) * self._scale,
        )


def _number(values: NamedValues, name: str) -> int:
    found = values.get(name, 0)
    return found if isinstance(found, int) else 0


def _with_dit_value(outputs: Outputs, name: str, value: Value) -> Outputs:
    return {port: {**values, name: value} if port == Role.DIT else values for port, values in outputs.items()}


def _steps_done(job: StageJob) -> int:
    """What is said by whoever handed the job over."""
    if job.resume is None:
        return 0
    step = job.resume.get(STEP)
    if not isinstance(step, int):
        raise EngineError(f"what was handed over does not say after which step: {step!r}")
    return step

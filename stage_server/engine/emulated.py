"""An engine that takes a profile's time instead of computing, and none of the processor's.

Its tensors have the true sizes and its pictures the true dimensions; all of them are blank. But text chunks in a
picture say what it was made from, so that whoever gets it can tell whether it is theirs: the seed that the decoder was
told, and the digest of the prompt that the encoder was told, as it came through the dit.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from threading import Event, Lock
from time import perf_counter

from stage_server.engine.base import (
    IMAGE_PORT,
    EngineError,
    JobControl,
    LoadError,
    NamedValues,
    OutOfMemory,
    Outputs,
    Preview,
    StageJob,
)
from stage_server.engine.profile import GIGABYTE, TensorSpec, load_profile
from wire.params import ImageParams, ModelInfo, Workflow
from wire.previews import preview_steps
from wire.to_gateway import RoleInfo
from wire.types import Role
from wire.values import Tensor, Value

ACTIVATION_PIXELS = 2048 * 2048
"""A profile's ``activation_gb`` is taken as that of one image of this size; larger jobs and batches need more."""

HEADER_BYTES = 4096
"""Room for names, shapes and alignment in the bound of an output's size."""

PROMPT_DIGEST = "prompt_digest"
"""Crosses from encoder to dit to decoder beside the tensors: the gateway tells only the encoder the prompt."""

NEXT = {Role.ENCODER: Role.DIT, Role.DIT: Role.DECODER}

TEXT_INPUTS = ("prompt", "height", "width", "num_inference_steps", "guidance_scale", "seed", "output_format")


class EmulatedEngine:
    """``time_scale`` 0.1 makes everything ten times faster than the profile says."""

    def __init__(self, profile: Path, time_scale: float = 1.0, served_name: str = "") -> None:
        self._profile = load_profile(profile)
        self._scale = time_scale
        self._name = served_name or self._profile.model.name
        self._memory = int(self._profile.device.memory_gb * GIGABYTE)
        self._roles: frozenset[Role] = frozenset()
        self._peak = 0
        self._closed = Event()

    @property
    def roles(self) -> frozenset[Role]:
        return self._roles

    @property
    def device_class(self) -> str:
        return self._profile.device.device_class

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
            workflows=self._workflows(),
            size_multiple=shape.size_multiple,
            default_steps=shape.default_steps,
            default_guidance=shape.default_guidance,
        )

    def capable(self) -> dict[Role, RoleInfo]:
        return {role: self._role_info(role) for role in Role}

    def set_roles(self, roles: frozenset[Role]) -> None:
        needed = self._resident(roles) + self._activation(roles)
        if needed > self._memory:
            raise LoadError(
                f"{' + '.join(sorted(roles))} need {needed / GIGABYTE:.1f} GB for weights and activations, "
                f"the emulated {self.device_class} has {self._memory / GIGABYTE:.1f} GB"
            )
        self._wait(sum(self._profile.costs(role).load_seconds for role in roles - self._roles))
        self._roles = roles

    def output_bound(self, job: StageJob) -> int:
        sizes = [
            sum(tensor.nbytes(self._extents(params)) for tensor in self._tensors(job.role)) for params in job.members
        ]
        pictures = [len(blank_png(params.width, params.height)) for params in job.members if job.role is Role.DECODER]
        return max(sizes) + max(pictures, default=0) + HEADER_BYTES * (1 + len(self._tensors(job.role)))

    def run(self, job: StageJob, inputs: tuple[NamedValues, ...], control: JobControl) -> tuple[Outputs, ...]:
        self._check_inputs(job.role, inputs)
        self._occupy(job)
        first, factor = job.members[0], self._batch_factor(job)
        match job.role:
            case Role.ENCODER:
                self._wait(factor * self._profile.encode_seconds(self._uploaded_pixels(job)))
                self._count_words(job, control)
            case Role.DIT:
                self._denoise(job, inputs, factor * self._profile.step_seconds(first), control)
            case Role.DECODER:
                self._wait(factor * self._profile.decode_seconds(first))
        return tuple(map(partial(self._outputs, job.role), job.members, inputs))

    def peak_bytes(self) -> int:
        return self._peak

    def close(self) -> None:
        """Whatever still waits, waits no more."""
        self._closed.set()

    # --- time ---

    def _wait(self, seconds: float) -> None:
        self._closed.wait(seconds * self._scale)

    def _denoise(
        self, job: StageJob, inputs: tuple[NamedValues, ...], step_seconds: float, control: JobControl
    ) -> None:
        """Steps end on a grid, so that late wake-ups do not add up; pauses shift the grid."""
        steps, due = self._profile.steps(job.members[0]), perf_counter()
        for step in range(1, steps + 1):
            due += step_seconds * self._scale
            self._closed.wait(max(0.0, due - perf_counter()))
            reported = perf_counter()
            self._show(job, inputs, step, steps, control)
            control.step_done(step, steps)
            due += perf_counter() - reported

    def _show(self, job: StageJob, inputs: tuple[NamedValues, ...], step: int, steps: int, control: JobControl) -> None:
        for member, params in enumerate(job.members):
            wanted = preview_steps(steps, params.previews)
            values = self._outputs(Role.DIT, params, inputs[member]).get(Role.DECODER)
            if step in wanted and values:
                control.preview(Preview(member, wanted.index(step), step, steps, values))

    def _count_words(self, job: StageJob, control: JobControl) -> None:
        """There is no tokenizer; a word stands for a token."""
        for member, params in enumerate(job.members):
            words = len(params.prompt.split())
            control.prompt_read(member, words, max(0, words - (params.max_sequence_length or words)))

    def _batch_factor(self, job: StageJob) -> float:
        tokens = self._profile.model.tokens(job.members[0])
        return self._profile.costs(job.role).batch_factor(tokens, len(job.members))

    def _uploaded_pixels(self, job: StageJob) -> int:
        """Uploads are resized to the size of the picture before they are encoded."""
        pictures = len(job.images[0]) if job.images else 0
        return pictures * job.members[0].height * job.members[0].width

    # --- memory ---

    def _resident(self, roles: frozenset[Role]) -> int:
        return sum(self._profile.costs(role).weight_bytes for role in roles)

    def _activation(self, roles: frozenset[Role]) -> int:
        """One job computes at a time."""
        return max((self._profile.costs(role).activation_bytes for role in roles), default=0)

    def _occupy(self, job: StageJob) -> None:
        pixels = sum(params.height * params.width for params in job.members)
        needed = int(self._profile.costs(job.role).activation_bytes * pixels / ACTIVATION_PIXELS)
        free = self._memory - self._resident(self._roles)
        if needed > free:
            raise OutOfMemory(
                f"{len(job.members)} x {job.members[0].width}x{job.members[0].height} need {needed / GIGABYTE:.1f} GB, "
                f"{free / GIGABYTE:.1f} GB are free beside the weights"
            )
        self._peak = self._resident(self._roles) + needed

    # --- values ---

    def _tensors(self, role: Role) -> tuple[TensorSpec, ...]:
        return self._profile.costs(role).outputs

    def _extents(self, params: ImageParams) -> dict[str, int]:
        return self._profile.model.extents(params)

    def _outputs(self, role: Role, params: ImageParams, given: NamedValues) -> Outputs:
        digest = prompt_digest(params.prompt) if role is Role.ENCODER else str(given[PROMPT_DIGEST])
        if role is Role.DECODER:
            png = inscribed(blank_png(params.width, params.height), {"seed": str(params.seed), PROMPT_DIGEST: digest})
            return {IMAGE_PORT: {"image": png, "format": "png", "width": params.width, "height": params.height}}
        ports: dict[str, dict[str, Value]] = {}
        for tensor in self._tensors(role):
            shape = tensor.resolve(self._extents(params))
            data = _zeros.view(tensor.nbytes(self._extents(params)))
            ports.setdefault(tensor.port, {})[tensor.name] = Tensor(tensor.dtype, shape, data)
        ports.setdefault(NEXT[role], {})[PROMPT_DIGEST] = digest
        return ports

    def _check_inputs(self, role: Role, inputs: tuple[NamedValues, ...]) -> None:
        """An emulation that forgave missing inputs would hide faults of everything around it."""
        wanted = {tensor.name for before in Role for tensor in self._tensors(before) if Role(tensor.port) is role}
        wanted |= set() if role is Role.ENCODER else {PROMPT_DIGEST}
        for values in inputs:
            if missing := wanted - set(values):
                raise EngineError(f"the {role} job lacks the inputs {', '.join(sorted(missing))}")

    def _role_info(self, role: Role) -> RoleInfo:
        costs = self._profile.costs(role)
        return RoleInfo(
            weight_bytes=costs.weight_bytes,
            activation_bytes=costs.activation_bytes,
            load_seconds=costs.load_seconds * self._scale,
        )

    def _workflows(self) -> tuple[Workflow, ...]:
        edges = [(Role.ENCODER, Role.DIT), (Role.DIT, Role.DECODER)]
        if any(tensor.port == "decoder" for tensor in self._tensors(Role.ENCODER)):
            edges.append((Role.ENCODER, Role.DECODER))
        inputs: Mapping[str, tuple[str, ...]] = {
            "text2image": TEXT_INPUTS,
            "image2image": (*TEXT_INPUTS, "image", "strength"),
        }
        return tuple(Workflow(name=name, inputs=taken, edges=tuple(edges)) for name, taken in inputs.items())


class _Zeros:
    """One buffer that all blank tensors share; the system backs it with a single page of zeros until written."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._buffer = memoryview(b"")

    def view(self, nbytes: int) -> memoryview:
        with self._lock:
            if nbytes > self._buffer.nbytes:
                self._buffer = memoryview(bytes(nbytes))
            return self._buffer[:nbytes]


_zeros = _Zeros()


@lru_cache(maxsize=32)
def blank_png(width: int, height: int) -> bytes:
    """A black picture of one bit per pixel."""
    rows = bytes((1 + (width + 7) // 8) * height)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def inscribed(png: bytes, texts: Mapping[str, str]) -> bytes:
    """The same picture with ``texts`` in it, as tEXt chunks before its last, empty chunk."""
    end = len(png) - len(_chunk(b"IEND", b""))
    chunks = (_chunk(b"tEXt", f"{key}\0{text}".encode("latin-1")) for key, text in texts.items())
    return b"".join((png[:end], *chunks, png[end:]))


def prompt_digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

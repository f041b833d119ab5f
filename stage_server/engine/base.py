"""The seam between the stage server and whatever computes: a real model, or the emulation of one.

An engine knows one model on one device. It knows nothing of sockets, stores or the gateway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from wire.params import ImageParams, ModelInfo
from wire.to_gateway import RoleInfo
from wire.types import Role
from wire.values import Value

if TYPE_CHECKING:
    from stage_server.engine.forms import Forms  # which knows outputs

IMAGE_PORT = "image"
"""Port of the finished picture: ``{"image": bytes, "format": str, "width": int, "height": int}``."""

PIXELS = "pixels"
"""What a decoder leaves for an upscaler: a tensor (height, width, 3) of bytes, as the file would have had them."""

HOST_BANDWIDTH = 20e9
"""Bytes per second from pinned host memory to a device, where nobody has measured it: PCIe 4.0 gives 22 to 26 GB/s."""

UNKNOWN_LARGEST = 4
"""A model that names no limit is taken to draw at most so many times the pixels of its default size."""

NamedValues = Mapping[str, Value]
"""Values that cross between stages under the names that the blocks give them."""

Outputs = Mapping[str, NamedValues]
"""Port (the role that reads it, or ``image``) → values. A port without values is left out."""


class EngineError(Exception):
    """The job failed on this server; another attempt may succeed."""


class BadJob(EngineError):
    """The parameters ask for what this model cannot do; retrying is useless. The text is for the client."""


class OutOfMemory(EngineError):
    """The device has not enough memory for this job."""


class NonFinite(EngineError):
    """An output, or the decoded picture, holds NaN or infinity. The text is for the client: no path or host in it."""


class WrongSize(EngineError):
    """The picture has another size than was asked for; retrying is useless. The text is for the client."""


class LoadError(Exception):
    """A model or role could not be loaded; the text is for the operator."""


class JobCancelled(Exception):
    """Raised by ``JobControl``; engines let it pass."""


DeviceTurn = Callable[[], AbstractContextManager[None]]
"""Makes a context in which no job computes: one turn in the line for the device. Not to be nested."""


class HandOver(Exception):
    """Raised by ``JobControl`` between two steps of a dit job, which is to go on elsewhere."""


STEP = "step"
"""Name of the last step that is done, in ``Unfinished.values``."""


class Unfinished(Exception):
    """An engine's answer to ``HandOver``: what another engine of the same model needs to go on."""

    def __init__(self, values: NamedValues) -> None:
        super().__init__(f"to be gone on with after step {values[STEP]!r}")
        self.values = values


class Partner(Protocol):
    """The engine on another server that runs the same dit job, so that each computes half of every guided step."""

    leads: bool
    """This one leads: its outputs count, and it goes on alone if need be."""

    def give(self, step: int, values: NamedValues) -> None:
        """Its half of the ``step``-th shared step, from 1 on. Does not wait."""

    def take(self, step: int, seconds: float) -> NamedValues | None:
        """The other one's; None where that is gone, or takes longer than ``seconds``."""

    def leave(self) -> None:
        """Nothing more will be given or taken. From any thread; ``take`` then ends at once."""


class PartnerLeft(Exception):
    """The server that this one helped goes on without it."""

    def __init__(self, steps: int) -> None:
        super().__init__(f"the server that leads goes on alone after {steps} shared steps")
        self.steps = steps
        """That were begun together."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a denoising job has so far of its picture."""

    index: int
    """Of those asked for, counted from 0; some may be left out."""
    step: int
    steps: int
    values: NamedValues
    """For the decoder, as the finished job would send them."""


class JobControl(Protocol):
    """How the running job talks to its server; called on the job's own thread only, unless it says otherwise."""

    def check(self) -> None:
        """Raises ``JobCancelled`` once the job was told to stop. From any thread."""

    def computed(self, company: int) -> None:
        """One call of a heavy module is done; so many jobs, this one among them, had the device for it."""

    def device_done(self) -> None:
        """What is left of the job needs the host alone: the next one may compute. Raises ``JobCancelled``."""

    def preview(self, preview: Preview) -> None:
        """Let others decode an intermediate picture while the job goes on. It may be dropped for want of room."""

    def prompt_read(self, tokens: int, dropped: int) -> None:
        """An encoder job's prompt has so many tokens, of which the last ``dropped`` were not read."""

    def rewritten(self, prompt: str) -> None:
        """What an enhancer job made of its prompt; empty: nothing."""

    def step_done(self, step: int, steps: int) -> None:
        """Report the end of denoising step ``step`` (1-based) of ``steps``. Raises ``JobCancelled`` or ``HandOver``."""

    def wanted(self) -> bool:
        """A more urgent job waits for the device: ``pause`` once nothing of this one is on it."""

    def pause(self, step: int, back: Callable[[], None] = lambda: None) -> None:
        """Between ``step`` and the next: blocks while more urgent jobs have the device.

        ``back`` is called, on any thread, as soon as the job has it again: before any that shares it goes on.
        Raises ``JobCancelled`` or ``HandOver``.
        """


class Unwatched:
    """The ``JobControl`` of a job that nobody asks about, and that nobody stops."""

    def check(self) -> None:
        pass

    def computed(self, company: int) -> None:
        pass

    def device_done(self) -> None:
        pass

    def preview(self, preview: Preview) -> None:
        pass

    def prompt_read(self, tokens: int, dropped: int) -> None:
        pass

    def rewritten(self, prompt: str) -> None:
        pass

    def step_done(self, step: int, steps: int) -> None:
        pass

    def wanted(self) -> bool:
        return False

    def pause(self, step: int, back: Callable[[], None] = lambda: None) -> None:
        pass


@dataclass(frozen=True, slots=True)
class StageJob:
    """One job for one role."""

    role: Role
    params: ImageParams
    images: Mapping[str, bytes] = field(default_factory=dict)
    """Uploaded pictures in an image file format, by block input name (``image``, ``mask_image``)."""
    share: bool = False
    """It may compute together with others that may; its result is then not that of a run alone to the bit."""
    resume: NamedValues | None = None
    """Of ``Unfinished``: go on from there."""
    partner: Partner | None = None
    """Of a dit job: who computes the other half of each guided step. One that does not lead has no outputs."""
    fast: bool = False
    """Its result need not be that of a run alone to the bit, whether it shares or not."""


MakeBuffer = Callable[[int], "npt.NDArray[np.uint8]"]
"""Bytes → an array of as many."""

Prepared = Callable[[JobControl], Outputs]
"""A job whose inputs are on the device: computes it, as ``Engine.run`` does. To be called once."""


class Engine(Protocol):
    """Every method but ``describe`` may block for long and is called off the socket threads.

    ``set_roles`` is called once no job of a role that goes is left, ``preload`` at any time, each by one thread at a
    time; meanwhile jobs of the roles that stay run. One job at a time is between the begin of ``run`` and
    ``JobControl.device_done``, but for those that are parked inside ``JobControl.pause`` and for those with ``share``,
    several of which may compute at once. ``prepare`` may be called at any time, from any thread.
    """

    @property
    def roles(self) -> frozenset[Role]:
        """Roles whose weights are resident."""

    def describe(self) -> ModelInfo:
        """What this model is and can do, read from configuration files alone. Raises ``LoadError``."""

    def capable(self) -> dict[Role, RoleInfo]:
        """Roles that the model can be split into, with the weights of each in bytes, and how many jobs may share it."""

    @property
    def device_class(self) -> str: ...

    @property
    def device_uuid(self) -> str:
        """Of a CUDA device, as NVML writes it; empty for others."""

    @property
    def software(self) -> str:
        """What computes, with versions: engines of one device class and software compute the same bits. Empty where
        jobs cannot be handed over."""

    @property
    def shares_guidance(self) -> bool:
        """It takes dit jobs with a ``partner``."""

    @property
    def memory_bytes(self) -> int:
        """Memory of the device that weights and activations must share."""

    beside: Callable[[], int]
    """Bytes of weights that other engines have on the device."""

    @property
    def forms(self) -> Forms:
        """What crosses between the model's stages looks like, as far as it is known here."""

    @property
    def resident_bytes(self) -> int:
        """Of weights on the device."""

    @property
    def host_buffer(self) -> MakeBuffer | None:
        """Makes host memory from which inputs reach the device without another copy; None where any does."""

    @property
    def warm(self) -> frozenset[Role]:
        """Roles that are not held and whose weights wait in host memory. From any thread, at once."""

    def preload(self, roles: frozenset[Role], turn: DeviceTurn = nullcontext) -> None:
        """Bring the weights of ``roles`` into host memory, as far as the bytes allowed for it go. Nothing else changes.

        Raises ``LoadError``.
        """

    def set_roles(self, roles: frozenset[Role], turn: DeviceTurn = nullcontext) -> None:
        """Make exactly ``roles`` resident: load what comes, warm it up, swap it in for what goes.

        The device is taken with ``turn``, to warm up each role that comes and last of all to swap; without one nobody
        else may compute.
        On failure the former roles are resident again and ``LoadError`` is raised.
        """

    def output_bound(self, job: StageJob) -> int:
        """Upper bound of the bytes that the job's outputs take in the store."""

    def prepare(self, job: StageJob, inputs: NamedValues) -> Prepared:
        """Bring ``inputs``, all upstream ports merged, onto the device while other jobs compute.

        The role is held from here until the job has run. Raises ``EngineError``.
        """

    def run(self, job: StageJob, inputs: NamedValues, control: JobControl) -> Outputs:
        """``prepare(job, inputs)(control)``: compute, then, after ``control.device_done()``, make the outputs ready.

        Deterministic without ``share``: the same job and seed give the same bytes, whatever ran before or runs
        meanwhile. With it, the result may differ in rounding. Raises ``EngineError``, ``JobCancelled``,
        ``Unfinished`` or ``PartnerLeft``.
        """

    def peak_bytes(self) -> int:
        """Largest device memory in use during the last job; 0 if unknown."""

    def close(self) -> None: ...

"""The seam between the stage server and whatever computes: a real model, or the emulation of one.

An engine knows one model on one device. It knows nothing of sockets, stores or the gateway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from wire.params import ImageParams, ModelInfo
from wire.to_gateway import RoleInfo
from wire.types import Role
from wire.values import Value

IMAGE_PORT = "image"
"""Port of the finished picture: ``{"image": bytes, "format": str, "width": int, "height": int}``."""

NamedValues = Mapping[str, Value]
"""Values that cross between stages under the names that the blocks give them."""

Outputs = Mapping[str, NamedValues]
"""Port (``dit``, ``decoder`` or ``image``) → values. A port without values is left out."""


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
    """Raised by ``JobControl.step_done`` on the compute thread; engines let it pass."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a denoising job has so far of one member's picture."""

    member: int
    index: int
    """Of those asked for, counted from 0; some may be left out."""
    step: int
    steps: int
    values: NamedValues
    """For the decoder, as the finished job would send them."""


class JobControl(Protocol):
    """How the running job talks to its server; called on the compute thread only."""

    def preview(self, preview: Preview) -> None:
        """Let others decode an intermediate picture while the job goes on. It may be dropped for want of room."""

    def prompt_read(self, member: int, tokens: int, dropped: int) -> None:
        """An encoder job's prompt has so many tokens, of which the last ``dropped`` were not read."""

    def step_done(self, step: int, steps: int) -> None:
        """Report the end of denoising step ``step`` (1-based) of ``steps``.

        Blocks while a more urgent job has the device. Raises ``JobCancelled``.
        """


@dataclass(frozen=True, slots=True)
class StageJob:
    """One job, or one batch of jobs of the same shape, for one role."""

    role: Role
    members: tuple[ImageParams, ...]
    images: tuple[Mapping[str, bytes], ...] = field(default=())
    """Per member: uploaded pictures in an image file format, by block input name (``image``, ``mask_image``)."""


class Engine(Protocol):
    """Every method but ``describe`` may block for long and is called off the socket threads.

    ``load`` and ``unload`` are never called while a job of a role that goes runs; ``run`` is called by one thread at a
    time, except that a job may be parked inside ``JobControl.step_done`` while another runs.
    """

    @property
    def roles(self) -> frozenset[Role]:
        """Roles whose weights are resident."""

    def describe(self) -> ModelInfo:
        """What this model is and can do, read from configuration files alone. Raises ``LoadError``."""

    def capable(self) -> dict[Role, RoleInfo]:
        """Roles that the model can be split into, with the weights of each in bytes."""

    @property
    def device_class(self) -> str: ...

    @property
    def memory_bytes(self) -> int:
        """Memory of the device that weights and activations must share."""

    def set_roles(self, roles: frozenset[Role]) -> None:
        """Make exactly ``roles`` resident: unload what goes, load what comes, warm it up.

        On failure the former roles are resident again and ``LoadError`` is raised.
        """

    def output_bound(self, job: StageJob) -> int:
        """Upper bound of the bytes that the job's outputs take in the store, per member."""

    def run(self, job: StageJob, inputs: tuple[NamedValues, ...], control: JobControl) -> tuple[Outputs, ...]:
        """Compute; one entry per member in ``inputs`` (all its upstream ports merged) and in the result.

        Deterministic: the same job and seed give the same bytes, whatever ran before or runs meanwhile.
        Raises ``EngineError`` or ``JobCancelled``.
        """

    def peak_bytes(self) -> int:
        """Largest device memory in use during the last job; 0 if unknown."""

    def close(self) -> None: ...

"""Copies between host and device memory.

On CUDA they go through pinned buffers on a stream of their own, ordered by events: nothing waits for the whole device.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from stage_server.engine.base import MakeBuffer

PINNED_MOST = 64 << 20
"""Bytes of a buffer for inputs; larger ones are used once and rarely, and pinning costs more than a copy."""


class Staging(Protocol):
    @property
    def host_buffer(self) -> MakeBuffer | None:
        """Makes host memory that the device reads by itself, and that ``pin_memory`` does not copy; None: none such."""

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """A host tensor with the tensor's value and memory layout."""

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor on the device with the host tensor's value."""

    def arriving(self) -> Arriving:
        """For the inputs of one job, while others compute."""

    def leaving(self) -> Leaving:
        """For the outputs of one job, while the next one computes."""

    def step_fence(self) -> StepFence:
        """A fence for one job's denoising steps."""


class Arriving(Protocol):
    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor on the device, whose value is the host tensor's once it has ``landed``."""

    def landed(self) -> None:
        """Returns when every copy is done. Neither waits for what computes, nor it for this."""


class Leaving(Protocol):
    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """A host tensor of the same memory layout, whose value is the tensor's once it has ``landed``."""

    def computed(self) -> None:
        """Call after the last ``to_host``: returns when all that this thread gave the device is computed."""

    def landed(self) -> None:
        """Returns when every copy is done, whatever computes meanwhile."""


class StepFence(Protocol):
    def passed(self) -> None:
        """Call after each step: returns when the device has finished the step before it."""


class HostStaging:
    """The device is the host: nothing to copy."""

    host_buffer = None

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def arriving(self) -> Arriving:
        return _Here()

    def leaving(self) -> Leaving:
        return _Here()

    def step_fence(self) -> StepFence:
        return _NoFence()


class CudaStaging:
    """Pinned host buffers and a copy stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def host_buffer(self) -> MakeBuffer:
        return _pinned

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        leaving = self.leaving()
        host = leaving.to_host(tensor)
        leaving.landed()
        return host

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        pinned = tensor.pin_memory()
        compute = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copies):
            moved = pinned.to(self._device, non_blocking=True)
        compute.wait_stream(self._copies)
        moved.record_stream(compute)
        return moved

    def arriving(self) -> Arriving:
        return _CudaArriving(self._device, self._copies)

    def leaving(self) -> Leaving:
        return _CudaLeaving(self._device, self._copies)

    def step_fence(self) -> StepFence:
        return _CudaFence(self._device)


class _Here:
    """``Arriving`` and ``Leaving`` where the device is the host."""

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def computed(self) -> None:
        return

    def landed(self) -> None:
        return


class _CudaArriving:
    def __init__(self, device: torch.device, copies: torch.cuda.Stream) -> None:
        self._device, self._copies = device, copies

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        pinned = tensor.pin_memory()
        with torch.cuda.stream(self._copies):
            moved = pinned.to(self._device, non_blocking=True)
        # Its memory belongs to the stream of copies: it must not be used again there while the job still reads it.
        moved.record_stream(torch.cuda.current_stream(self._device))
        return moved

    def landed(self) -> None:
        _recorded(self._copies).synchronize()


class _CudaLeaving:
    def __init__(self, device: torch.device, copies: torch.cuda.Stream) -> None:
        self._device, self._copies = device, copies
        self._done: torch.cuda.Event | None = None

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "cuda":
            return tensor
        pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copies):
            pinned.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._copies)
        self._done = _recorded(self._copies)  # at once: the next job's copies may follow on this stream
        return pinned

    def computed(self) -> None:
        computed(self._device)

    def landed(self) -> None:
        if self._done is not None:
            self._done.synchronize()


def _pinned(nbytes: int) -> npt.NDArray[np.uint8]:
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=nbytes <= PINNED_MOST).numpy()


def computed(device: torch.device) -> None:
    """Returns when all that this thread gave the device is computed."""
    if device.type == "cuda":
        _recorded(torch.cuda.current_stream(device)).synchronize()


def _recorded(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """A mark behind what the stream has been given; who waits for it leaves the processor to others."""
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event


class _NoFence:
    def passed(self) -> None:
        return


class _CudaFence:
    """Stays one step behind the device, so that progress is true and the next step's kernels are queued already."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._previous: torch.cuda.Event | None = None

    def passed(self) -> None:
        event = _recorded(torch.cuda.current_stream(self._device))
        if self._previous is not None:
            self._previous.synchronize()
        self._previous = event

"""Copies between host and device memory.

On CUDA they go through pinned buffers on a stream of their own, ordered by events: nothing waits for the whole device.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Staging(Protocol):
    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """A host tensor with the tensor's value and memory layout."""

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor on the device with the host tensor's value."""

    def step_fence(self) -> StepFence:
        """A fence for one job's denoising steps."""


class StepFence(Protocol):
    def passed(self) -> None:
        """Call after each step: returns when the device has finished the step before it."""


class HostStaging:
    """The device is the host: nothing to copy."""

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def step_fence(self) -> StepFence:
        return _NoFence()


class CudaStaging:
    """Pinned host buffers and a copy stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "cuda":
            return tensor
        pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copies):
            pinned.copy_(tensor, non_blocking=True)
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record(self._copies)
        tensor.record_stream(self._copies)
        done.synchronize()
        return pinned

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        pinned = tensor.pin_memory()
        compute = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copies):
            moved = pinned.to(self._device, non_blocking=True)
        compute.wait_stream(self._copies)
        moved.record_stream(compute)
        return moved

    def step_fence(self) -> StepFence:
        return _CudaFence(self._device)


class _NoFence:
    def passed(self) -> None:
        return


class _CudaFence:
    """Stays one step behind the device, so that progress is true and the next step's kernels are queued already."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._previous: torch.cuda.Event | None = None

    def passed(self) -> None:
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        if self._previous is not None:
            self._previous.synchronize()
        self._previous = event

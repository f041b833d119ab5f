"""Temperature and power, asked of a stand-in for NVIDIA's library: tests have no such device."""

from __future__ import annotations

import ctypes
from typing import Any

from stage_server.runtime import sensors
from stage_server.runtime.sensors import Sensors

UUID = "GPU-1"
OK, NOT_SUPPORTED, NOT_FOUND = 0, 3, 6


class Nvml:
    """Writes through pointers, as the library does."""

    def __init__(self, power_status: int = OK) -> None:
        self._power_status = power_status

    def nvmlInit_v2(self) -> int:  # noqa: N802 # NVML's names
        return OK

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:  # noqa: N802
        handle._obj.value = 77
        return OK if uuid == UUID.encode() else NOT_FOUND

    def nvmlDeviceGetTemperature(self, handle: ctypes.c_void_p, sensor: int, value: Any) -> int:  # noqa: N802
        assert (handle.value, sensor) == (77, sensors.GPU_SENSOR)
        value._obj.value = 61
        return OK

    def nvmlDeviceGetPowerUsage(self, handle: ctypes.c_void_p, value: Any) -> int:  # noqa: N802
        value._obj.value = 350_500
        return self._power_status


def test_a_device_that_is_known() -> None:
    found = Sensors(UUID, Nvml())
    assert (found.temperature_celsius(), found.power_watts()) == (61.0, 350.5)


def test_a_device_without_one_of_the_sensors() -> None:
    found = Sensors(UUID, Nvml(power_status=NOT_SUPPORTED))
    assert (found.temperature_celsius(), found.power_watts()) == (61.0, None)


def test_nobody_measures(monkeypatch: Any) -> None:
    monkeypatch.setattr(sensors, "LIBRARY", "libno-such-thing.so.1")
    for found in (Sensors(), Sensors("GPU-2", Nvml()), Sensors(UUID)):
        assert (found.temperature_celsius(), found.power_watts()) == (None, None)

"""Temperature and power of a CUDA device, asked of NVIDIA's management library (NVML), which comes with the driver."""

from __future__ import annotations

import ctypes
import logging
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
GPU_SENSOR = 0
"""``NVML_TEMPERATURE_GPU``."""

log = logging.getLogger(__name__)


class Sensors:
    """None for whatever nobody measures: no NVML, no such device, or a device without the sensor."""

    def __init__(self, uuid: str = "", library: Any = None) -> None:
        """``uuid`` of a CUDA device, as NVML writes it (``GPU-…``); empty: there is none. ``library`` for tests."""
        self._library = self._device = None
        if not uuid:
            return
        try:
            self._library = library or ctypes.CDLL(LIBRARY)
        except OSError:
            return
        device = ctypes.c_void_p()
        known = self._library.nvmlInit_v2() == 0 and (
            self._library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(device)) == 0
        )
        if known:
            self._device = device
        else:
            log.info("NVML does not know the device %s: its temperature and power are not reported", uuid)

    def temperature_celsius(self) -> float | None:
        return self._asked("nvmlDeviceGetTemperature", GPU_SENSOR)

    def power_watts(self) -> float | None:
        milliwatts = self._asked("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1000

    def _asked(self, function: str, *arguments: int) -> float | None:
        if self._device is None:
            return None
        value = ctypes.c_uint()
        status = getattr(self._library, function)(self._device, *arguments, ctypes.byref(value))
        return float(value.value) if status == 0 else None

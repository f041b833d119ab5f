"""Which GPU each process of this machine gets."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

from fleet.launcher import LaunchFailed

EPSILON = 1e-9
"""Three thirds are a whole GPU."""


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES would name them; none where there is no NVIDIA driver."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part.strip() for part in named.split(",") if part.strip() not in ("", "-1")]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)  # noqa: S603 # our own words
    return listed.stdout.split() if listed.returncode == 0 else []


@dataclass
class Gpus:
    """Hands them out, whole or in shares."""

    names: Sequence[str]
    _taken: dict[str, tuple[list[str], float]] = field(default_factory=dict)
    """Holder → its GPUs, and how much of each."""

    def take(self, holder: str, number: float) -> list[str]:
        """Raises ``LaunchFailed`` where there is no room."""
        share = min(number, 1.0)
        free = [gpu for gpu in self.names if self._free(gpu) > share - EPSILON]
        # Shares go where the least is left, so that whole GPUs stay whole.
        chosen = sorted(free, key=self._free)[: max(int(number), 1)] if number else []
        if len(chosen) * share < number - EPSILON:
            raise LaunchFailed(f"{holder} needs {number:g} GPUs; of the {len(self.names)} here {len(free)} have room")
        self._taken[holder] = (chosen, share)
        return chosen

    def give_back(self, holder: str) -> None:
        self._taken.pop(holder, None)

    def _free(self, gpu: str) -> float:
        return 1.0 - sum(share for held, share in self._taken.values() if gpu in held)

"""Which roles an engine holds, and the change of them beside running jobs.

Reading weights and copying them to the device need no turn at the device; warming up and swapping in do. Jobs work on
shallow copies of the pipeline (``job_view``), so one that is parked during the swap keeps its modules.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any

import torch
from diffusers import ModularPipeline

from stage_server.engine.base import DeviceTurn, LoadError
from stage_server.engine.components import Components
from stage_server.engine.giving_way import GivingWay
from stage_server.engine.load_options import NoRoom
from stage_server.engine.weight_cache import SPARED_BYTES, free_bytes
from wire.types import REQUIRED, Role

_log = logging.getLogger(__name__)


class HeldRoles:
    """``held`` changes only in ``change`` and ``clear``; to be read from any thread."""

    def __init__(
        self,
        pipeline: ModularPipeline,
        components: Components,
        needed: Callable[[Iterable[Role]], frozenset[str]],
        warm_up: Callable[[Role, ModularPipeline], None],
        room: Callable[[], int],
    ) -> None:
        """``needed``: components that roles use. ``warm_up`` runs a tiny job on a pipeline, and raises ``LoadError``.

        ``room``: bytes that weights may still take on the device.
        """
        self._pipeline = pipeline
        self._components = components
        self._needed = needed
        self._warm_up = warm_up
        self._room = room
        self._changing = Lock()
        self.held: frozenset[Role] = frozenset()

    @property
    def warm(self) -> frozenset[Role]:
        return frozenset(role for role in REQUIRED if role not in self.held and self._is_warm(role))

    def preload(self, roles: frozenset[Role], turn: DeviceTurn) -> None:
        """See ``Engine.preload``. A change that comes meanwhile waits for one component at most."""
        wanted = self._needed(roles)
        for name in sorted(wanted, key=self._components.nbytes):
            with self._changing:
                if not self._components.preload(name, wanted, turn):
                    _log.info("%s is not read ahead: --weight-cache-bytes, or the host's memory, leaves no room", name)

    def change(self, roles: frozenset[Role], turn: DeviceTurn) -> None:
        """See ``Engine.set_roles``."""
        with self._changing:
            _Change(self, roles, turn).carry_out()

    def clear(self) -> None:
        with self._changing:
            self._components.close()
            self.held = frozenset()

    def _is_warm(self, role: Role) -> bool:
        needed = self._needed({role})
        return bool(needed) and self._components.are_warm(needed)


class _Change:
    """One change of roles. It touches the pipeline late: a failure before that leaves nothing to restore."""

    def __init__(self, roles: HeldRoles, wanted: frozenset[Role], turn: DeviceTurn) -> None:
        self._roles = roles
        self._components = roles._components
        self._wanted = wanted
        self._turn = turn
        self._before = self._components.resident
        needed = roles._needed(wanted)
        self._coming = needed - self._before
        self._going = self._before - needed
        self._loaded: dict[str, Any] = {}

    def carry_out(self) -> None:
        roles = self._roles
        coming = [role for role in Role if role in self._wanted - roles.held]  # each feeds the next one's warm-up
        former = roles.held
        try:
            self._load()
            pipeline = self._preview()
            for role in coming:
                with GivingWay(self._turn, self._components.computed).in_calls_of(self._own()):
                    roles._warm_up(role, pipeline)
            with self._turn():
                self._activate()
        except LoadError:
            self._components.discard(self._loaded, keep=False)  # who knows what is wrong with it
            self._restore(former)
            raise
        if self._going or not self._wanted:
            self._components.collect()

    def _load(self) -> None:
        """What comes, beside what goes where there is room for both."""
        nbytes = sum(map(self._components.bytes_to_come, self._coming))
        if self._going and nbytes > self._roles._room():
            self._drop(f"{nbytes / 1e9:.1f} GB more do not fit beside what goes")
        for name in sorted(self._coming):
            try:
                self._loaded[name] = self._components.load(name, self._turn)
            except NoRoom as full:
                if not self._going & self._components.resident:
                    raise
                self._drop(str(full))
                self._loaded[name] = self._components.load(name, self._turn)

    def _drop(self, why: str) -> None:
        """No job uses what goes: its roles' jobs have ended, and those that stay do not need it."""
        _log.info("%s: %s given up first", why, ", ".join(sorted(self._going)))
        roles = self._roles
        roles.held &= self._wanted
        self._components.unload(self._going)
        self._components.collect()

    def _preview(self) -> ModularPipeline:
        """The pipeline as it will be."""
        pipeline = copy.copy(self._roles._pipeline)
        for name, component in self._loaded.items():
            setattr(pipeline, name, component)
        return pipeline

    def _own(self) -> list[Any]:
        """What has come and nobody else calls yet."""
        return [component for name, component in self._loaded.items() if not self._components.is_common(name)]

    def _activate(self) -> None:
        self._components.place(self._loaded)
        self._components.unload(self._going)
        self._roles.held = self._wanted

    def _restore(self, former: frozenset[Role]) -> None:
        """Back to what was resident; roles that cannot come back are no longer claimed."""
        lost: dict[str, Any] = {}
        try:
            for name in sorted(self._before - self._components.resident):
                lost[name] = self._components.load(name, self._turn)
        finally:
            if lost:
                with self._turn():
                    self._components.place(lost)
            roles = self._roles
            roles.held = frozenset(role for role in former if roles._needed({role}) <= self._components.resident)


def room_beside(device: torch.device, total: int, spared: int, resident: Callable[[], int]) -> int:
    """Bytes that weights may still take on a device of ``total`` bytes, ``spared`` of them for jobs."""
    if device.type != "cuda":
        return max(0, free_bytes() - SPARED_BYTES)
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, min(free + unused, total - spared - resident()))

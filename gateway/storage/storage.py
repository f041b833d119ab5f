"""Everything the gateway keeps: callers' files and pictures behind urls, and the sweeping of both."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from gateway.settings import InvalidSettings, Settings
from gateway.storage.files import Files
from gateway.storage.job_pictures import JobPictures
from gateway.storage.objects import Objects, StoreError, in_memory, open_store
from gateway.storage.pictures import Pictures
from gateway.storage.space import Space

SWEEP_SECONDS = 60.0

READY_SECONDS = 5.0
"""How long a request waits for what is being read at start."""

log = logging.getLogger(__name__)


class Storage:
    """To be made with ``open_storage``, or in memory for what need not outlive the process."""

    def __init__(
        self,
        settings: Settings,
        objects: Objects | None = None,
        spool: Path | None = None,
        clock: Callable[[], float] = time.time,
        has_others: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """``has_others``: whether anybody but this tenant has a key; the store is shared out where somebody has."""
        objects = objects or in_memory()
        space = Space(settings.storage_max_bytes, settings.storage_tenant_share, has_others)
        self.objects = objects
        """The store itself, for rooms that keep their own books of what lies there."""
        self.spool = spool
        """Where large request bodies lie meanwhile; the system's temporary folder when None."""
        self.pictures = Pictures(
            objects,
            space,
            max_bytes=settings.results_max_bytes,
            max_age_seconds=settings.results_max_age_seconds,
            clock=clock,
        )
        self.files = Files(objects, space, self.pictures.sweep, clock)
        self.jobs = JobPictures(objects, space, clock)
        self._loading = asyncio.Lock()
        self._loaded = False

    async def ready(self) -> None:
        """Wait a little until what earlier processes left is known. Raises ``StoreError``."""
        if self._loaded:
            return
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._load()
        except TimeoutError:
            raise StoreError(f"the store was not read within {READY_SECONDS:g} s") from None

    async def _load(self) -> None:
        async with self._loading:
            if not self._loaded:
                await self.files.load()
                await self.pictures.load()
                self._loaded = True

    async def sweep(self) -> None:
        """Delete what has expired. Raises ``StoreError``."""
        await self._load()
        await self.files.sweep()
        await self.pictures.sweep()

    async def run(self) -> NoReturn:
        """Sweep for ever. A store that fails is asked again: the gateway serves on without it."""
        while True:
            try:
                await self.sweep()
            except StoreError as error:
                log.warning("storage: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)


def open_storage(settings: Settings, has_others: Callable[[str], bool] = lambda _: True) -> Storage:
    """Where the settings say. Raises ``InvalidSettings``."""
    state = settings.state_folder()
    spool = state / "spool"
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        spool.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=spool) as probe:
            probe.write(b"writable")
    except OSError as error:
        raise InvalidSettings(f"DISAGFUSION_STATE_DIR: {state} cannot be used: {error.strerror}") from error
    try:
        objects = open_store(settings.file_store, state / "files")
        return Storage(settings, objects, spool, has_others=has_others)
    except StoreError as error:
        raise InvalidSettings(f"DISAGFUSION_FILE_STORE: {error}") from error

"""A database that is up to date, made once and copied: to migrate an empty one takes time, and Alembic."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from functools import cache
from pathlib import Path


def prepared(folder: Path) -> Path:
    """``folder``, to be a state folder, with a database in it. Does nothing where there is one."""
    from gateway.database.engines import FILE_NAME

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / FILE_NAME
    if not file.exists():
        file.touch(mode=0o600)
        file.write_bytes(_template())
    return folder


@cache
def _template() -> bytes:
    from gateway.database.database import Database
    from gateway.database.engines import FILE_NAME
    from gateway.settings import Settings

    folder = Path(tempfile.mkdtemp())

    async def make() -> None:
        database = Database(Settings(state_dir=folder))
        await database.open()
        await database.close()

    # In a thread, as the caller's may have an event loop that runs.
    maker = threading.Thread(target=lambda: asyncio.run(make()))
    maker.start()
    maker.join()
    content = (folder / FILE_NAME).read_bytes()
    shutil.rmtree(folder)
    return content

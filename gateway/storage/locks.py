"""Locks on files between processes, where the system has such."""

from __future__ import annotations

try:
    import fcntl
except ModuleNotFoundError:
    fcntl = None  # type: ignore[assignment]

EXIST = fcntl is not None
"""Without them nobody notices that two gateways share a folder, and jobs of the dead wait until their leases expire."""


def lock(file: int, *, waits: bool) -> bool:
    """The open ``file``, until it is closed. False where there are no locks.

    Raises ``BlockingIOError`` where another process has locked it and this one does not wait, or ``OSError``.
    """
    if fcntl is None:
        return False
    fcntl.flock(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True

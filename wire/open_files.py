"""How many files a process may have open: each of its connections is one."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger(__name__)


def allow_files(needed: int, what: str) -> None:
    """As many as the system lets this process have, up to ``needed``, which ``what`` asks for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < needed:
        log.warning("%d files may be open, and %s needs %d: raise the limit (ulimit -n)", most, what, needed)

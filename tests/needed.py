"""Programs that tests of real servers need: Debian packages of ``tests/debian-packages.txt``, skipped by name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

PROGRAMS: Mapping[str, str] = {
    "iproute2": "ip",
    "iptables": "iptables",
    "redis-server": "redis-server",
    "postgresql": "postgres",
    "nginx": "nginx",
    "chromium": "chromium",
    "prometheus": "prometheus",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
}
"""Package → the program of it that tests start."""


def find(package: str) -> str | None:
    """The path of the package's program. Debian keeps some where only root's PATH, or no PATH at all, reaches."""
    postgresql = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    folders = [os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", *map(str, postgresql)]
    return shutil.which(PROGRAMS[package], path=os.pathsep.join(folders))


def needs(*packages: str) -> pytest.MarkDecorator:
    """A mark: skip where one of ``packages`` is not installed, and say which."""
    missing = [package for package in packages if find(package) is None]
    verb = "is" if len(missing) == 1 else "are"
    reason = f"{', '.join(missing)} {verb} not installed (tests/debian-packages.txt)"
    return pytest.mark.skipif(bool(missing), reason=reason)

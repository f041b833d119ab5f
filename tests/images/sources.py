"""Where packages come from on this machine, for builds that are to use the same: apt's mirror and pip's configuration.

Nothing is known of mirrors here: apt and pip are asked.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tests.images.buildah import Failed, Mounts

PROGRAMS = {
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "unshare": "util-linux",
    "ip": "iproute2",
    "apt-get": "apt",
}
"""Program → Debian's package."""

PACKAGES = ("python3", "python3-venv", "python-is-python3", "ca-certificates")
"""Of the base system, beside Debian's smallest."""

INDEXES = ("index-url", "extra-index-url")

NOT_OF_BUILDS = frozenset({"require-virtualenv", "cache-dir", "target", "user", "prefix", "root", "no-index", "log"})
"""Settings of pip that say where it installs or what it keeps."""


def missing() -> str:
    """What this machine lacks for building images, or nothing."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    lacking = sorted(package for program, package in PROGRAMS.items() if shutil.which(program, path=path) is None)
    if lacking:
        return f"{', '.join(lacking)} not installed (tests/debian-packages.txt)"
    return "" if os.geteuid() == 0 else "must be root: buildah's chroot isolation and debootstrap need it"


def bare_system(folder: Path) -> None:
    """Debian's smallest with Python, of the release that this machine has."""
    release = _release()
    mirror = _mirror(release)
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", release, str(folder), mirror]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise Failed(f"debootstrap {release} ended with {ran.returncode}: {ran.stdout[-2000:]}{ran.stderr[-2000:]}")


def _release() -> str:
    found = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    if found is None:
        raise Failed("/etc/os-release names no VERSION_CODENAME: give a base system with --base")
    return found[1]


def _mirror(release: str) -> str:
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
        capture_output=True,
        text=True,
    ).stdout
    for line in listed.splitlines():
        uri, suite, component = line.split()
        if (suite, component) == (release, "main"):
            return uri
    raise Failed(f"apt knows no mirror of {release} main: run apt-get update, or give a base system with --base")


def pip_mounts(folder: Path) -> Mounts:
    """The configuration of this machine's pip as a file of the build's, and the files and folders that it names."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True, cwd=folder
    )
    settings = pip_settings(listed.stdout)
    conf = folder / "pip.conf"
    conf.write_text("[global]\n" + "".join(f"{name} = {_indented(value)}\n" for name, value in settings.items()))
    named = set(_named_files(settings.values()))
    # Pages of an index in a folder link to files that lie beside that.
    named |= {path.parent for name in INDEXES for path in _named_files([settings.get(name, "")])}
    return {conf: "/etc/pip.conf"} | {path: str(path) for path in sorted(named)}


def pip_settings(listed: str) -> Mapping[str, str]:
    """``pip config list``: a line for each, SECTION.NAME='VALUE'. The environment counts more than files, the section
    of ``pip install`` more than that of all commands."""
    found: dict[str, dict[str, str]] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        found.setdefault(section, {})[name] = str(ast.literal_eval(value))
    settings = found.get("global", {}) | found.get("install", {}) | found.get(":env:", {})
    return {name: value for name, value in settings.items() if name not in NOT_OF_BUILDS and name != "config-file"}


def _named_files(values: Iterable[str]) -> Iterator[Path]:
    for value in values:
        for word in value.split():
            path = Path(word.removeprefix("file://"))
            if path.is_absolute() and path.exists():
                yield path


def _indented(value: str) -> str:
    return "\n    ".join(value.split("\n"))

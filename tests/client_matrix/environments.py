"""Sets up each client in a folder of its own below ``.clients``, once per set of pins."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parent.parent / ".clients"
STAMP = "ready.json"
INSTALL_SECONDS = 900.0


class NotInstalled(Exception):
    """A package of the client cannot be installed; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Client:
    name: str
    driver: Path
    pip: tuple[str, ...]
    npm: Mapping[str, str]
    node: str
    """Version of Node, for drivers in JavaScript."""
    program: str = ""
    """Of this machine, without which there is no such client."""

    @property
    def versions(self) -> str:
        if self.program:
            return f"{self.program} of the machine"
        return ", ".join((*self.pip, *(f"{package}@{version}" for package, version in self.npm.items())))

    def command(self) -> tuple[str, ...]:
        """What runs the driver, set up if it is not yet. Raises ``NotInstalled``."""
        if self.program and shutil.which(self.program) is None:
            raise NotInstalled(f"there is no {self.program} on this machine")
        if self.npm:
            node = _npm_folder({"node": self.node}, CACHE / "node") / "node_modules/.bin/node"
            driver = _npm_folder(self.npm, CACHE / _slug(self.name)) / self.driver.name
            for source in (self.driver, HERE / "drivers/harness.mjs"):  # imports are looked up from the file's folder
                shutil.copy(source, driver.parent)
            return str(node), str(driver)
        python = _virtual_environment(self.pip, CACHE / _slug(self.name)) if self.pip else sys.executable
        return str(python), str(self.driver)


def read_clients() -> list[Client]:
    defined = tomllib.loads((HERE / "clients.toml").read_text())
    return [
        Client(
            name,
            HERE / "drivers" / of["driver"],
            tuple(of.get("pip", ())),
            of.get("npm", {}),
            defined["node"],
            of.get("program", ""),
        )
        for name, of in defined["clients"].items()
    ]


def _virtual_environment(packages: tuple[str, ...], folder: Path) -> Path:
    """Its interpreter."""
    python = folder / "bin/python"
    wanted = [sys.version, *packages]
    if not _is_ready(folder, wanted):
        shutil.rmtree(folder, ignore_errors=True)
        _install([sys.executable, "-m", "venv", str(folder)], folder.parent)
        _install([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], folder)
        (folder / STAMP).write_text(json.dumps(wanted))
    return python


def _npm_folder(packages: Mapping[str, str], folder: Path) -> Path:
    if not _is_ready(folder, packages):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(json.dumps({"private": True, "type": "module", "dependencies": packages}))
        _install(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"], folder)
        (folder / STAMP).write_text(json.dumps(packages))
    return folder


def _is_ready(folder: Path, wanted: object) -> bool:
    """The stamp is written last: a set-up that was interrupted is begun again."""
    stamp = folder / STAMP
    return stamp.exists() and json.loads(stamp.read_text()) == wanted


def _install(command: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except FileNotFoundError:
        raise NotInstalled(f"there is no {command[0]} on this machine") from None
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{Path(command[0]).name} did not end within {INSTALL_SECONDS:g} s") from None
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if "error" in line.lower()]
        raise NotInstalled(" ".join(lines[:3]) or f"{Path(command[0]).name} ended with status {done.returncode}")


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")

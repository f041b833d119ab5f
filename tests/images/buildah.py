"""buildah with a storage of its own, without anything that a container may lack: no loop device, no overlay, no user
namespace."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

Mounts = Mapping[Path, str]
"""Path here → path in the build; read-only."""


def image(target: str) -> str:
    """What the image of a target of the Dockerfile is called here."""
    return f"localhost/disagfusion-{target}"


class Failed(Exception):
    """The text says what did not work."""


class Buildah(AbstractContextManager["Buildah"]):
    """Containers end with the ``with`` block, and the folder holds all there is of them and the images."""

    def __init__(self, folder: Path) -> None:
        self._policy = folder / "policy.json"
        self._policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        registries = folder / "registries.conf"
        registries.write_text("unqualified-search-registries = []\n")  # what is not here is not looked for
        self._base = (
            "buildah",
            f"--root={folder / 'store'}",
            f"--runroot={folder / 'run'}",
            "--storage-driver=vfs",
            f"--registries-conf={registries}",
        )
        self.folder = folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        subprocess.run([*self._base, "rm", "--all"], capture_output=True)  # unmounts what is mounted

    def image_of(self, system: Path, name: str) -> None:
        container = self._said("from", "scratch")
        self._said("add", "--quiet", container, str(system), "/")
        self._said("commit", "--quiet", f"--signature-policy={self._policy}", container, name)
        self._said("rm", container)

    def build(self, context: Path, target: str, name: str, arguments: Mapping[str, str], mounts: Mounts) -> None:
        """Raises ``Failed`` with the last lines of what was printed."""
        command = [
            *("build", "--isolation=chroot", "--format=docker", "--pull-never", "--layers=false"),
            *(f"--signature-policy={self._policy}", f"--target={target}", f"--tag={name}"),
            *(f"--build-arg={key}={value}" for key, value in arguments.items()),
            *(f"--volume={path}:{inside}:ro" for path, inside in mounts.items()),
            str(context),
        ]
        self._said(*command)

    def size(self, name: str) -> int:
        """Bytes of the image's root file system."""
        container = self.container(name)
        root = self._said("mount", container)
        counted = subprocess.run(["du", "-sxB1", root], capture_output=True, text=True, check=True).stdout
        self._said("rm", container)
        return int(counted.split()[0])

    def container(self, image: str) -> str:
        return self._said("from", "--pull-never", image)

    def settings(self, image: str) -> Mapping[str, object]:
        """What the image says of how it is started."""
        config = json.loads(self._said("inspect", "--type=image", image))["Docker"]["config"]
        assert isinstance(config, dict)
        return config

    def command(self, container: str, program: Sequence[str], environment: Mapping[str, str]) -> list[str]:
        """A program in a container, as the user and in the folder that the image names, in this process's network."""
        told = (f"--env={key}={value}" for key, value in environment.items())
        return [*self._base, "run", "--isolation=chroot", *told, container, "--", *program]

    def _said(self, *arguments: str) -> str:
        ran = subprocess.run([*self._base, *arguments], capture_output=True, text=True, env=self._environment())
        if ran.returncode:
            raise Failed(f"buildah {arguments[0]} ended with {ran.returncode}:\n{(ran.stdout + ran.stderr)[-4000:]}")
        return ran.stdout.strip()

    def _environment(self) -> Mapping[str, str]:
        """Large layers are written to TMPDIR on their way."""
        return os.environ | {"TMPDIR": str(self.folder)}

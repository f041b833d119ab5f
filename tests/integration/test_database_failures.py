"""The database fails under a gateway that works, or the disk below all that it keeps: pictures are made meanwhile, and
afterwards nothing is missing."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from gateway.database.engines import FILE_NAME
from tests.needed import needs
from tests.servers import Postgres

pytestmark = pytest.mark.services

PROFILE = Path(__file__).with_name("slow.toml")
PICTURE = {"prompt": "x", "model": "slow", "size": "64x64", "num_inference_steps": 1}


@dataclass
class Scene:
    """A gateway with an emulated stage server, and one key in its database."""

    start: Callable
    until: Callable
    environment: dict[str, str]
    url: str = ""
    gateway: object = None
    stage: object = None
    secret: str = ""

    def keys(self, *arguments: str, status: int = 0) -> str:
        """What the command prints, on both outputs."""
        command = self.start("-m", "gateway", "keys", *arguments, **self.environment)
        assert command.popen.wait(60) == status, command.text()
        return command.text()

    def create(self) -> str:
        printed = self.keys("create", "--tenant", "alice")
        return next(line for line in printed.splitlines() if line.startswith("sk-df-"))

    def status(self, secret: str) -> int:
        headers = {"authorization": f"Bearer {secret}"}
        return httpx.post(f"{self.url}/v1/images/generations", json=PICTURE, headers=headers, timeout=60).status_code

    def ask(self, method: str, path: str, **request: object) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.secret}"}
        return httpx.request(method, f"{self.url}/v1/{path}", headers=headers, timeout=60, **request)

    def upload(self, nbytes: int) -> httpx.Response:
        return self.ask("POST", "files", data={"purpose": "vision"}, files={"file": ("x", os.urandom(nbytes))})

    def post(self, **fields: object) -> httpx.Response:
        return self.ask("POST", "images/generations", json=PICTURE | fields)

    def complaints(self) -> list[str]:
        """Lines of the gateway's log about its database."""
        return re.findall(r"^.* (?:ERROR|WARNING) +gateway the database .*$", self.gateway.text(), re.MULTILINE)

    def works_without(self, words: str) -> None:
        """Pictures are made; the command fails, saying ``words``."""
        assert self.status("sk-carol") == 200
        assert self.status(self.secret) == 200
        printed = self.keys("create", "--tenant", "alice", status=2)
        assert words in printed
        assert "Traceback" not in printed
        assert self.status(self.secret) == 200

    def works_again(self) -> None:
        secret = self.create()
        self.until(lambda: self.status(secret) == 200, "a gateway that knows the new key")
        assert self.status(self.secret) == 200
        assert self.gateway.finish(signal.SIGTERM) == 0
        assert "Traceback" not in self.gateway.text()
        used = [key["last_used"] is not None for key in json.loads(self.keys("list", "--json"))]
        assert used == [True, True]


@pytest.fixture
def scene(start, listening, until, is_ready, free_port):
    @contextmanager
    def serving(**environment: str) -> Iterator[Scene]:
        made = Scene(start, until, environment)
        made.secret = made.create()
        port = free_port()
        made.gateway = start(
            *("-m", "gateway", "--port", "0", "--control-bind", f"tcp://127.0.0.1:{port}"),
            DISAGFUSION_API_KEYS='{"carol": "sk-carol"}',
            **environment,
        )
        made.url = listening(made.gateway)
        made.stage = start(
            *("-m", "stage_server", "--engine", "emulated", "--profile", str(PROFILE), "--role", "encoder,dit,decoder"),
            *("--gateway", f"tcp://127.0.0.1:{port}", "--time-scale", "0.05"),
        )
        until(lambda: is_ready(made.url), "ready")
        yield made

    return serving


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a tmpfs")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)], check=False)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """All the room there is goes to one file."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                if not file.write(bytes(size)):
                    size //= 2
            except OSError:
                size //= 2
    return ballast


def test_a_full_disk(scene, small_disk):
    with scene(DISAGFUSION_STATE_DIR=str(small_disk / "state")) as serving:
        ballast = fill(small_disk)
        serving.works_without("its disk is full")
        ballast.unlink()
        serving.works_again()


def stored(folder: Path) -> set[str]:
    """Paths that requests have left. Not what jobs under way make, the database's own files and the usage's."""
    own = (FILE_NAME, "usage-")
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(own))
    found = {str(path.relative_to(folder)) for path in files if path.stat().st_size}
    return {path for path in found if not path.startswith("files/jobs/out/")}


def refused_for_want_of_room(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
    assert 1 <= int(answer.headers["retry-after"]) <= 60


@pytest.mark.parametrize("left", [0, 200_000])
def test_a_full_disk_below_the_file_store(scene, small_disk, left):
    """``left``: bytes, so that what is written begins well and finds no room for its end."""
    state = small_disk / "state"
    with scene(DISAGFUSION_STATE_DIR=str(state)) as serving:
        assert serving.upload(300_000).status_code == 200
        before = stored(state)
        serving.stage.send(signal.SIGSTOP)
        job = serving.post(**{"async": True}).json()["id"]
        ballast = fill(small_disk)
        os.truncate(ballast, ballast.stat().st_size - left)
        for nbytes in (300_000, 3_000_000):  # in memory until it is stored, and on disk from its arrival
            refused_for_want_of_room(serving.upload(nbytes))
        serving.stage.send(signal.SIGCONT)
        if left == 0:
            for small in ({"response_format": "url"}, {"async": True}):  # for which a page may have come free
                answer = serving.post(**small)
                if answer.is_error:
                    refused_for_want_of_room(answer)
            assert {path for path in stored(state) if "/pictures/" not in path} == before
        assert serving.post().status_code == 200
        assert len(serving.ask("GET", "files").json()["data"]) == 1
        assert not [path for path in stored(state) if "#" in path], "what was begun is still there"

        ballast.unlink()
        serving.until(
            lambda: serving.ask("GET", f"images/jobs/{job}").json()["status"] == "completed", "the job's picture"
        )
        link = serving.post(response_format="url").json()["data"][0]["url"]
        assert httpx.get(link).content.startswith(b"\x89PNG")
        assert serving.upload(3_000_000).status_code == 200
        serving.works_again()


def test_a_lock_of_more_than_ten_seconds(scene, tmp_path):
    with scene() as serving:
        other = sqlite3.connect(tmp_path / "state" / FILE_NAME, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        for _ in range(2):  # each gives up after five seconds
            serving.works_without("it is locked by another process")
        serving.until(serving.complaints, "a word in the log", 60)
        other.execute("COMMIT")
        serving.works_again()
        locked, back = serving.complaints()
        assert "it is locked by another process (database is locked); the gateway serves on without it" in locked
        assert "works again" in back


def test_a_file_that_is_damaged_meanwhile(scene, tmp_path):
    with scene() as serving:
        file = tmp_path / "state" / FILE_NAME
        copy = sqlite3.connect(tmp_path / "copy")
        with sqlite3.connect(file) as database:
            database.backup(copy)
        copy.close()
        with file.open("r+b") as damaged:
            damaged.write(b"nonsense" * (file.stat().st_size // 8))
        serving.works_without("its file is damaged, or no database")
        assert serving.gateway.finish(signal.SIGTERM) == 0  # as the manual says
        for left in file.parent.glob(f"{FILE_NAME}*"):
            left.unlink()
        (tmp_path / "copy").rename(file)
        assert json.loads(serving.keys("list", "--json"))[0]["tenant"] == "alice"


@needs("postgresql")
def test_a_server_that_is_killed_and_comes_back(scene):
    with Postgres() as server, scene(DISAGFUSION_DATABASE_URL=server.new_database()) as serving:
        server.crash()
        serving.works_without("it cannot be reached")
        server.start()
        serving.works_again()
        lost, back = serving.complaints()
        assert f"127.0.0.1:{server.port}: it cannot be reached" in lost
        assert "works again" in back

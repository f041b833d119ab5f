"""Real database servers for tests marked ``services``: on free ports, killed and started again as a test wants.

``tests/conftest.py`` has fixtures of them: ``postgres`` and ``redis``.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.needed import find

PATIENCE = 120.0
"""Seconds for a server to start or stop on a busy machine."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Postgres:
    """Runs within its ``with`` block, but for what ``stop``, ``crash`` and ``start`` do there."""

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="postgres-")))  # not in pytest's: 0700
    port: int = field(default_factory=free_port)
    _made: int = 0

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def start(self) -> None:
        data = self.folder / "data"
        if not data.exists():
            if os.getuid() == 0:  # PostgreSQL refuses to run as root
                shutil.chown(self.folder, "postgres", "postgres")
            self._run("initdb", "-D", str(data), "--no-sync", "--auth", "trust", "--username", "postgres")
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        log = str(self.folder / "log")
        self._run("pg_ctl", "start", "-w", "-t", f"{PATIENCE:g}", "-D", str(data), "-l", log, "-o", options)

    def stop(self, how: str = "fast") -> None:
        """``fast`` cuts connections and ends; ``immediate`` ends as in a crash."""
        self._run("pg_ctl", "stop", "-w", "-t", f"{PATIENCE:g}", "-D", str(self.folder / "data"), "-m", how)

    def crash(self) -> None:
        self.stop("immediate")

    def remove(self) -> None:
        if (self.folder / "data" / "postmaster.pid").exists():
            self.crash()
        shutil.rmtree(self.folder)

    def new_database(self) -> str:
        """The url of an empty database."""
        self._made += 1
        name = f"test_{self._made}"
        self.sql(f"CREATE DATABASE {name}")
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        """What ``psql`` prints: a line per row, columns with | between."""
        where = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", database)
        return self._run("psql", *where, "-v", "ON_ERROR_STOP=1", "-Atc", statement).strip()

    def _run(self, program: str, *arguments: str) -> str:
        server = find("postgresql")
        assert server is not None
        user: dict[str, object] = {}
        if os.getuid() == 0:
            account = pwd.getpwnam("postgres")
            user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        with (self.folder / "output").open("w+") as output:  # a pipe would stay open as long as the server runs
            done = subprocess.run(
                [str(Path(server).resolve().with_name(program)), *arguments],
                **user,
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=2 * PATIENCE,
            )
            output.seek(0)
            said = output.read()
        assert done.returncode == 0, f"{program}: {said}"
        return said


@dataclass
class Redis:
    """Keeps nothing on disk: killed and started again it is empty."""

    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        server = find("redis-server")
        assert server is not None
        options = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
        self._process = subprocess.Popen([server, *options], stdout=subprocess.DEVNULL)
        limit = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.poll() is None, "redis-server has ended"
            assert time.monotonic() < limit, "redis-server does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)
            self._process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(5) == b"+PONG"
        except OSError:
            return False

"""What ``gateway_cost`` measures, as processes: the gateway with emulated stages behind it, and a bare handler."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.bare_handler import PATH
from benchmarks.ports import free_port

BODY = b'{"prompt": "a red circle", "size": "256x256", "num_inference_steps": 1, "seed": 1}'
KEY = "benchmark"
PROFILE, TIME_SCALE = "flux.1-dev-h100", 1e-5
PER_MINUTE = 10**6
"""And as much of everything else: limits that nobody reaches."""
START_SECONDS = 120.0
STAGE_WITH_LARGE_PICTURES = """
import os, sys
from stage_server import __main__
from stage_server.engine import blank_pictures, emulated, emulated_values
blank = blank_pictures.blank_png(256, 256)
noise = blank_pictures._chunk(b"noIs", os.urandom({nbytes}))
large = blank[:-12] + noise + blank[-12:]
emulated.blank_png = emulated_values.blank_png = lambda width, height, code=b"": large
sys.exit(__main__.main())
"""
"""Pictures as large as real ones: blank, with a chunk of noise before the last one."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A process that answers at ``PATH``."""

    name: str
    process: psutil.Process
    port: int

    def processor_seconds(self) -> float:
        """Since it was started."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def gateway(
    folder: Path, picture_bytes: int = 0, profile: str | None = None, more: Mapping[str, str] | None = None
) -> Iterator[Subject]:
    """With keys, limits and usage on, and three stage servers whose jobs take no time.

    Pictures have ``picture_bytes`` of noise more than blank ones. ``profile``: a file for what cProfile sees. ``more``:
    settings.
    """
    with ExitStack() as stack:
        subject, control = stack.enter_context(service(folder, more, profile))
        for role in ("encoder", "dit", "decoder"):
            program = ["-c", STAGE_WITH_LARGE_PICTURES.format(nbytes=picture_bytes)] if picture_bytes else []
            engine = ["--profile", PROFILE, "--time-scale", str(TIME_SCALE)]
            stack.enter_context(emulated(control, role, role, engine, program))
        first_answer(subject)
        yield subject


@contextmanager
def service(
    folder: Path, more: Mapping[str, str] | None = None, profile: str | None = None, log_level: str = "warning"
) -> Iterator[tuple[Subject, str]]:
    """The gateway with keys, limits and usage on, and the address for stage servers; it is not up yet.

    ``more``: settings. ``profile``: a file for what cProfile sees.
    """
    port, control = free_port(), f"tcp://127.0.0.1:{free_port()}"
    settings = {
        "STATE_DIR": str(folder),
        "EMBEDDING_CACHE_BYTES": "0",  # every request asks for the same, and is to pass all three stages
        "API_KEYS": f'{{"tenant": "{KEY}"}}',
        "DEFAULT_REQUESTS_PER_MINUTE": str(PER_MINUTE),
        "DEFAULT_IMAGES_PER_MINUTE": str(PER_MINUTE),
        "DEFAULT_CONCURRENT_REQUESTS": str(PER_MINUTE),
        "DEFAULT_DEVICE_SECONDS_PER_MONTH": str(PER_MINUTE),
        **(more or {}),
    }
    environment = {f"DISAGFUSION_{name}": value for name, value in settings.items()}
    profiling = ["-m", "cProfile", "-o", profile] if profile else []
    command = [sys.executable, *profiling, "-m", "gateway", "--port", str(port), "--control-bind", control]
    with started([*command, "--log-level", log_level], environment) as process:
        yield Subject("the gateway", process, port), control


@contextmanager
def emulated(
    control: str, name: str, roles: str, engine: Sequence[str], program: Sequence[str] = ()
) -> Iterator[psutil.Process]:
    """A stage server with these roles for as long as the benchmark takes."""
    stage = ["--role", roles, "--name", name, "--log-level", "error", "--pin", "--gateway", control]
    command = [sys.executable, *(program or ["-m", "stage_server"]), *stage, "--engine", "emulated", *engine]
    with started(command) as process:
        yield process


@contextmanager
def bare_handler(folder: Path, answer: bytes, *, encodes: bool = False) -> Iterator[Subject]:
    """FastAPI on uvicorn, which answers ``answer``; with ``encodes`` it encodes that picture each time."""
    folder.mkdir(parents=True)
    (folder / "answer").write_bytes(answer)
    port = free_port()
    options = ["--encode"] if encodes else []
    command = [sys.executable, "-m", "benchmarks.bare_handler", str(port), str(folder / "answer"), *options]
    with started(command) as process:
        subject = Subject("a bare FastAPI handler", process, port)
        first_answer(subject)
        yield subject


def await_roles(subject: Subject, held: int) -> None:
    """Until servers hold so many roles, each counted once per server. Raises ``TimeoutError``."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{subject.port}/readyz") as answer:
                models = json.load(answer)["models"]
        except (urllib.error.URLError, ConnectionError):
            models = {}
        if sum(sum(model["roles"].values()) for model in models.values()) >= held:
            return
        time.sleep(0.2)  # nothing says when the last of several servers has joined
    raise TimeoutError(f"the stage servers do not hold {held} roles after {START_SECONDS:g} s")


def first_answer(subject: Subject) -> bytes:
    """To one request, as soon as there is one."""
    until = time.monotonic() + START_SECONDS
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    while True:
        request = urllib.request.Request(f"http://127.0.0.1:{subject.port}{PATH}", BODY, headers)  # our own
        try:
            with urllib.request.urlopen(request) as answer:  # noqa: S310
                return bytes(answer.read())
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


@contextmanager
def started(command: Sequence[str], environment: dict[str, str] | None = None) -> Iterator[psutil.Process]:
    """The command for as long as the benchmark takes; it writes nothing to the terminal but errors."""
    child = subprocess.Popen(command, env=os.environ | (environment or {}), stdout=subprocess.DEVNULL)
    try:
        yield psutil.Process(child.pid)
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

"""``python -m gateway`` with real stage servers of real models, and pictures that take a moment: small, few steps."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

from tests.databases import prepared

ROOT = Path(__file__).parent.parent
BUNDLED = ROOT / "stage_server/models/tiny-shapes"
MODEL = BUNDLED.name
SEVERAL = "several"
"""A model with random weights that edits up to sixteen pictures at once; the bundled one edits one."""

KEY = "sk-pictures"
ADMIN_KEY = "sk-pictures-operator"
START_SECONDS = 300.0
"""For processes that import torch, on a machine that may have other things to do."""
STOP_SECONDS = 20.0
KEY_SECONDS = 60.0

Found = TypeVar("Found")


class NotStarted(Exception):
    """The service did not start; the text says what its processes said."""


@dataclass(frozen=True, slots=True)
class Process:
    popen: subprocess.Popen[bytes]
    log: Path

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """As a machine that hangs: it keeps its connections and does nothing."""
        self.popen.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.popen.send_signal(signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class PictureService:
    url: str
    processes: Mapping[str, Process]
    """By name: ``gateway``, and the stage servers as they were asked for."""

    def log(self, name: str) -> Path:
        return self.processes[name].log

    def new_key(self, tenant: str, *limits: str) -> str:
        """Made as an operator makes one, with options of ``python -m gateway keys create``; the gateway knows it."""
        command = [sys.executable, "-m", "gateway", "keys", "create", "--tenant", tenant, *limits]
        state = {"DISAGFUSION_STATE_DIR": str(self.log("gateway").parent / "state")}
        made = subprocess.run(command, env=os.environ | state, cwd=ROOT, capture_output=True, text=True, check=True)
        key = made.stdout.strip()
        limit = time.monotonic() + KEY_SECONDS
        while not httpx.get(f"{self.url}/v1/models", headers={"api-key": key}, timeout=30).is_success:
            if time.monotonic() > limit:
                raise NotStarted(f"the gateway does not know a new key after {KEY_SECONDS:g} s")
            time.sleep(0.05)
        return key

    def is_idle(self) -> bool:
        """No stage server has a job."""
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        answer = httpx.get(f"{self.url}/admin/servers", headers=headers, timeout=30).raise_for_status()
        return not any(server["jobs"] for server in answer.json()["servers"])


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage server that is to run."""

    roles: str
    model: Path
    program: tuple[str, ...] = ("-m", "stage_server")
    """What Python runs."""


def quick_model(folder: Path, side: int, steps: int, **serving: object) -> Path:
    """The bundled model with other defaults: pixels of an edge, denoising steps, and whatever serving.json holds."""
    model = folder / MODEL
    model.mkdir()
    for part in BUNDLED.iterdir():
        (model / part.name).symlink_to(part)
    told = json.loads((BUNDLED / "serving.json").read_text())
    (model / "serving.json").unlink()
    quick = {"default_size": (side, side), "default_steps": steps}
    (model / "serving.json").write_text(json.dumps(told | quick | serving))
    return model


def several_pictures_model(folder: Path, side: int, steps: int) -> Path:
    """FLUX.2 klein in miniature. In a process of its own: torch is heavy, and drawing random weights is not ours."""
    model = folder / SEVERAL
    model.mkdir()
    command = [sys.executable, "-m", "tests.engine.families", "flux2-klein", str(model)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    (model / "serving.json").write_text(json.dumps({"default_size": (side, side), "default_steps": steps}))
    return model


@contextmanager
def picture_service(
    folder: Path, stages: Mapping[str, Stage], settings: Mapping[str, str], everywhere: Mapping[str, str] | None = None
) -> Iterator[PictureService]:
    """Ready for every model of ``stages``. Logs lie in ``folder``, as NAME.log; ``settings`` are the gateway's,
    ``everywhere`` are variables of all processes. Raises ``NotStarted``."""
    base = {
        "DISAGFUSION_API_KEYS": json.dumps({"pictures": KEY}),
        "DISAGFUSION_ADMIN_KEY": ADMIN_KEY,
        "DISAGFUSION_STATE_DIR": str(prepared(folder / "state")),
        # A busy machine foresees long waits, and the gateway admits nothing that may end too late.
        "DISAGFUSION_REQUEST_TIMEOUT_SECONDS": "100000",
    }
    with ExitStack() as stack:

        def run(name: str, *arguments: str, **environment: str) -> Process:
            environment = {**(everywhere or {}), **environment}
            return stack.enter_context(_running(arguments, folder / f"{name}.log", environment))

        gateway = run(
            "gateway", "-m", "gateway", "--port", "0", "--control-bind", "tcp://127.0.0.1:*", **base | settings
        )
        processes = {"gateway": gateway}
        found = _started(
            processes, lambda: re.search(r"listening at (http://[^;\s]+); .* connect to (\S+)", text(gateway))
        )
        url, control = found.groups()
        for name, stage in stages.items():
            model = ("--model", str(stage.model), "--threads", "1", "--name", name)
            processes[name] = run(name, *stage.program, *model, "--role", stage.roles, "--gateway", control)
        models = {stage.model.name for stage in stages.values()}
        _started(processes, lambda: models <= _served(url) and httpx.get(f"{url}/readyz").status_code == httpx.codes.OK)
        yield PictureService(url, processes)


def text(process: Process) -> str:
    return process.log.read_text()


def _served(url: str) -> set[str]:
    answer = httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {KEY}"}, timeout=30)
    return {model["id"] for model in answer.raise_for_status().json()["data"]}


@contextmanager
def _running(arguments: tuple[str, ...], log: Path, settings: Mapping[str, str]) -> Iterator[Process]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DISAGFUSION_", "OTEL_"))}
    with log.open("wb") as output:
        popen = subprocess.Popen(
            [sys.executable, *arguments], env={**clean, **settings}, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield Process(popen, log)
    finally:
        popen.terminate()
        try:
            popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


def _started(processes: Mapping[str, Process], look: Callable[[], Found]) -> Found:
    limit = time.monotonic() + START_SECONDS
    while not (found := look()):
        ended = [name for name, process in processes.items() if process.popen.poll() is not None]
        if ended or time.monotonic() > limit:
            told = "\n".join(f"{name}:\n{text(process)}" for name, process in processes.items())
            why = f"{', '.join(ended)} ended" if ended else f"not within {START_SECONDS:g} s"
            raise NotStarted(f"the service did not start: {why}\n{told}")
        time.sleep(0.1)
    return found

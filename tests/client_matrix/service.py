"""The service under test: a real gateway with real stage servers of the bundled model; and a door that is busy."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from gateway.api.errors import ApiError, overloaded

MODEL = "tiny-shapes"
KEY = "sk-matrix"
ADMIN_KEY = "sk-matrix-operator"
ALIASES = ("gpt-image-1", "dall-e-2", "dall-e-3", "org/tiny")
DEFAULT_SIZE = (128, 128)
START_SECONDS = 300.0
"""For processes that import torch, on a machine that may have other things to do."""
STOP_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Service:
    url: str
    log: Path

    def has_cancelled(self, since: int) -> bool:
        """A client of ``POST /v1/images/generations`` went away; ``since`` is an offset into the log."""
        return b'/v1/images/generations" 499 in' in self.log.read_bytes()[since:]

    def falls_idle(self, seconds: float) -> bool:
        """No stage server has a job for half a second, which is longer than any pause between two jobs of a request."""
        limit = time.monotonic() + seconds
        busy = time.monotonic()
        with httpx.Client(headers={"authorization": f"Bearer {ADMIN_KEY}"}, timeout=30) as operator:
            while time.monotonic() < limit:
                answer = operator.get(f"{self.url}/admin/servers").raise_for_status()
                if any(server["jobs"] for server in answer.json()["servers"]):
                    busy = time.monotonic()
                elif time.monotonic() - busy > 0.5:
                    return True
                time.sleep(0.05)
        return False


@contextmanager
def service(log: Path) -> Iterator[Service]:
    """With the bundled weights, but few steps and small pictures where a client cannot ask for them itself."""
    log.write_bytes(b"")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        settings = {
            "DISAGFUSION_API_KEYS": json.dumps({"matrix": KEY}),
            "DISAGFUSION_ADMIN_KEY": ADMIN_KEY,
            # A busy machine foresees long waits, and the gateway admits nothing that may end too late.
            "DISAGFUSION_REQUEST_TIMEOUT_SECONDS": "100000",
            "DISAGFUSION_MODEL_ALIASES": json.dumps(dict.fromkeys(ALIASES, MODEL)),
        }
        gateway = ("-m", "gateway", "--port", "0", "--control-bind", "tcp://127.0.0.1:*")
        stack.enter_context(_running(gateway, log, settings))
        found = _within(lambda: re.search(r"listening at (http://[^;\s]+); .* connect to (\S+)", log.read_text()), log)
        url, control = found.groups()
        stage = ("-m", "stage_server", "--model", str(_quick_model(Path(folder))), "--threads", "1")
        for roles in ("encoder,decoder", "dit"):
            stack.enter_context(_running((*stage, "--role", roles, "--gateway", control), log, {}))
        _within(lambda: httpx.get(f"{url}/readyz", timeout=30).status_code == httpx.codes.OK, log)
        yield Service(url, log)


def _quick_model(folder: Path) -> Path:
    bundled = Path(__file__).parent.parent.parent / "stage_server/models" / MODEL
    model = folder / MODEL
    model.mkdir()
    for part in bundled.iterdir():
        (model / part.name).symlink_to(part)
    serving = json.loads((bundled / "serving.json").read_text())
    (model / "serving.json").unlink()
    (model / "serving.json").write_text(json.dumps(serving | {"default_size": DEFAULT_SIZE, "default_steps": 2}))
    return model


@contextmanager
def _running(arguments: tuple[str, ...], log: Path, settings: dict[str, str]) -> Iterator[None]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DISAGFUSION_", "OTEL_"))}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=clean | settings, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _within(look: Callable[[], object], log: Path) -> re.Match[str]:
    limit = time.monotonic() + START_SECONDS
    while not (found := look()):
        if time.monotonic() > limit:
            sys.exit(f"the service did not start within {START_SECONDS:g} s:\n{log.read_text()}")
        time.sleep(0.2)
    return found


FULL = overloaded("Too many requests are waiting.", 1)
LIMITED = ApiError(
    "Rate limit reached: 1 request per second.",
    code="rate_limit_exceeded",
    status=429,
    kind="rate_limit_error",
    headers={"retry-after": "1", "retry-after-ms": "1000"},
)
DOORS = {"full": (FULL, 1), "limited": (LIMITED, 1), "gives_up": (FULL, 1_000)}
"""First part of the path → what is answered, and how often before requests are let through."""


class BusyDoor(ThreadingHTTPServer):
    """Answers as the gateway does when it is busy, then hands on to it; and counts the tries of each door."""

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = behind
        self.tries: dict[str, int] = dict.fromkeys(DOORS, 0)
        self.lock = threading.Lock()

    def url(self, door: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{door}/v1"

    def reset(self) -> None:
        with self.lock:
            self.tries = dict.fromkeys(DOORS, 0)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: BusyDoor

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        _, door, path = self.path.split("/", 2)
        with self.server.lock:
            self.server.tries[door] += 1
            tries = self.server.tries[door]
        refusal, times = DOORS[door]
        if tries <= times:
            self._answer(refusal.status, json.dumps({"error": refusal.envelope()}).encode(), refusal.headers)
            return
        headers = {
            name: self.headers[name] for name in ("authorization", "api-key", "content-type") if self.headers[name]
        }
        answer = httpx.post(f"{self.server.behind}/{path}", content=body, headers=headers, timeout=120)
        self._answer(answer.status_code, answer.content, {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # a client that has read enough
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the base class calls it so
        """Drivers tell what they saw; the door need not."""


@contextmanager
def busy_door(behind: str) -> Iterator[BusyDoor]:
    door = BusyDoor(behind)
    thread = threading.Thread(target=door.serve_forever, name="busy door")
    thread.start()
    try:
        yield door
    finally:
        door.shutdown()
        thread.join()
        door.server_close()

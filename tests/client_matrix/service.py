"""The service under test: a real gateway with real stage servers of the bundled model; and a door that is busy."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from gateway.api.errors import ApiError, overloaded
from tests import picture_service

SEVERAL = "gpt-image-2"
"""The name here of the model that edits several pictures: n8n offers only such names, and one provider of the AI SDK
sends different requests for others."""
ALIASES = {
    **dict.fromkeys(("gpt-image-1", "dall-e-2", "dall-e-3", "org/tiny"), picture_service.MODEL),
    SEVERAL: picture_service.SEVERAL,
}
SIDE, STEPS = 128, 2
"""Where a client cannot ask for small pictures and few steps itself."""
DEFAULT_SIZE = (SIDE, SIDE)


@dataclass(frozen=True, slots=True)
class Service:
    running: picture_service.PictureService

    @property
    def url(self) -> str:
        return self.running.url

    def new_key(self, *limits: str) -> str:
        """Of the tenant of all other keys, so that it finds the same files; counts when it is returned."""
        return self.running.new_key("pictures", *limits)

    def log_size(self) -> int:
        return self.running.log("gateway").stat().st_size

    def has_cancelled(self, since: int) -> bool:
        """A client of ``POST /v1/images/generations`` went away; ``since`` is an offset into the gateway's log."""
        return b'/v1/images/generations" 499 in' in self.running.log("gateway").read_bytes()[since:]

    def falls_idle(self, seconds: float) -> bool:
        """No stage server has a job for half a second, which is longer than any pause between two jobs of a request."""
        limit = time.monotonic() + seconds
        busy = time.monotonic()
        while time.monotonic() < limit:
            if not self.running.is_idle():
                busy = time.monotonic()
            elif time.monotonic() - busy > 0.5:
                return True
            time.sleep(0.05)
        return False


@contextmanager
def service(folder: Path) -> Iterator[Service]:
    """With the bundled weights, and random ones for edits of several pictures. Logs stay in ``folder``, which is
    emptied before. Raises ``NotStarted``."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    model = picture_service.quick_model(folder, SIDE, STEPS)
    several = picture_service.several_pictures_model(folder, SIDE, STEPS)
    stages = {
        "encoder-decoder": picture_service.Stage("encoder,decoder", model),
        "dit": picture_service.Stage("dit", model),
        "several": picture_service.Stage("encoder,dit,decoder", several),
    }
    settings = {
        "DISAGFUSION_DEFAULT_MODEL": picture_service.MODEL,
        "DISAGFUSION_MODEL_ALIASES": json.dumps(ALIASES),
    }
    with picture_service.picture_service(folder, stages, settings) as running:
        yield Service(running)


FULL = overloaded("Too many requests are waiting.", 1)
LIMITED = ApiError(
    "Rate limit reached: 1 request per second.",
    code="rate_limit_exceeded",
    status=429,
    kind="rate_limit_error",
    headers={"retry-after": "1", "retry-after-ms": "1000"},
)
DOORS = {"full": (FULL, 1), "limited": (LIMITED, 1), "gives_up": (FULL, 1_000), "budget": (FULL, 0)}
"""First part of the path → what is answered, and how often before requests are let through."""
ON_RETRIES = ("retry-after", "retry-after-ms", "x-should-retry")
"""Headers of the gateway's answers that tell clients whether to try again."""


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
        on_retries = {name: answer.headers[name] for name in ON_RETRIES if name in answer.headers}
        self._answer(answer.status_code, answer.content, on_retries)

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

"""A gateway, three stage servers of the bundled model and one of a model that takes several, once a session."""

from __future__ import annotations

import inspect
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import openai
import pytest
from openai.resources.images import Images

from tests.picture_service import (
    KEY,
    MODEL,
    PictureService,
    Stage,
    picture_service,
    quick_model,
    several_pictures_model,
)

SIDE = 64
"""Pixels of an edge."""
MAX_WAITING = 12
"""Requests that the gateway lets in."""
CRASH_SEED = 666
"""The dit fails with it, each time."""
PATIENCE = 240.0

BLOCKED_WORD = "unspeakable"
"""No prompt with it passes moderation."""

CRASHING = f"""
import sys
from stage_server import __main__
from stage_server.engine import diffusers_engine as engine
run = engine.run_stage
def crash(pipeline, task, *rest):
    if task.params.seed == {CRASH_SEED}:
        raise RuntimeError("injected at /secret/path.py")
    return run(pipeline, task, *rest)
engine.run_stage = crash
sys.exit(__main__.main())
"""


def until(condition: Callable[[], Any], what: str) -> Any:
    limit = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < limit, f"{what}: not within {PATIENCE:g} s"
        time.sleep(0.02)
    return found


@dataclass
class Trap:
    """A web server of this machine that nobody should be led to."""

    url: str
    port: int
    visits: list[str] = field(default_factory=list)


@contextmanager
def web_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Of this machine; its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, name="web server")
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="session")
def trap() -> Iterator[Trap]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.visits.append(self.path)
            self.send_error(404)

    with web_server(Handler) as port:
        found = Trap(f"http://127.0.0.1:{port}", port)
        yield found


@pytest.fixture(scope="session")
def moderation() -> Iterator[str]:
    """The url of a hook that blocks one word."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = json.dumps({"allowed": BLOCKED_WORD not in question["prompt"]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    with web_server(Handler) as port:
        yield f"http://127.0.0.1:{port}/moderate"


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, trap: Trap, moderation: str) -> Iterator[PictureService]:
    folder = tmp_path_factory.mktemp("live")
    model = quick_model(folder, SIDE, 1, default_guidance=1.0, quality_steps={"low": 1, "medium": 2, "high": 3})
    stages = {
        "encoder": Stage("encoder", model),
        "dit": Stage("dit", model, ("-c", CRASHING)),
        "decoder": Stage("decoder", model),
        "several": Stage("encoder,dit,decoder", several_pictures_model(folder, SIDE, 1)),
    }
    settings = {
        "DISAGFUSION_ELASTIC_ROLES": "false",  # so that tests know who does what
        "DISAGFUSION_DEFAULT_MODEL": MODEL,
        "DISAGFUSION_MODEL_ALIASES": json.dumps({"gpt-image-1": MODEL, "dall-e-3": MODEL, "org/tiny": MODEL}),
        "DISAGFUSION_MAX_WAITING_REQUESTS": str(MAX_WAITING),
        "DISAGFUSION_LIVENESS_SECONDS": "600",  # a frozen server is not lost here
        "DISAGFUSION_IMAGE_URL_PORTS": json.dumps([80, 443, trap.port]),
        "DISAGFUSION_MODERATION_URL": moderation,
        "DISAGFUSION_MODERATION_STAGES": '["before"]',
    }
    tracing = {"OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_SCHEDULE_DELAY": "200"}
    with picture_service(folder, stages, settings, tracing) as running:
        yield running
        assert all(process.popen.poll() is None for process in running.processes.values())
        assert not re.search(
            "^Traceback", running.log("gateway").read_text(), re.MULTILINE
        )  # but in spans, of failures


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did, afterwards no server has a job."""
    yield
    if "service" in request.fixturenames:
        until(request.getfixturevalue("service").is_idle, "servers without jobs")


@pytest.fixture
def connect(service: PictureService) -> Iterator[Callable[..., openai.OpenAI]]:
    """OpenAI's client, as it is but strict about answers and without retries."""
    opened = []

    def open_client(**options: Any) -> openai.OpenAI:
        strict = {"api_key": KEY, "max_retries": 0, "_strict_response_validation": True}
        opened.append(openai.OpenAI(base_url=f"{service.url}/v1", **strict | options))
        return opened[-1]

    yield open_client
    for client in opened:
        client.close()


@pytest.fixture
def sdk(connect: Callable[..., openai.OpenAI]) -> openai.OpenAI:
    return connect()


@pytest.fixture
def http(service: PictureService) -> Iterator[httpx.Client]:
    """For what OpenAI's client cannot send."""
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=PATIENCE) as client:
        yield client


def arguments(**fields: Any) -> dict[str, Any]:
    """For ``images.generate``: what it has no parameter for goes as ``extra_body``."""
    known = inspect.signature(Images.generate).parameters
    given = {"prompt": "a red circle"} | {name: value for name, value in fields.items() if name in known}
    return given | {"extra_body": {name: value for name, value in fields.items() if name not in known}}

"""A server that says what the test tells it to."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PICTURE = b"\x89PNG bytes of a picture"
B64 = base64.b64encode(PICTURE).decode()


def event(name: str, **fields: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


def completed(**fields: object) -> bytes:
    return event("image_generation.completed", b64_json=B64, **fields)


@dataclass
class FakeServer:
    """Answers with ``stream`` as server-sent events where it is set, else with ``body``: JSON, or bytes as is."""

    url: str = ""
    stream: Sequence[bytes] = ()
    hang: bool = False
    """After ``stream``, until the client leaves."""
    status: int = 200
    body: object = field(default_factory=lambda: {"data": [{"b64_json": B64}]})
    headers: Mapping[str, str] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    """Path and fields; files as (name, type, bytes)."""
    keys: list[str | None] = field(default_factory=list)
    started: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)

    async def answer(self, request: Request) -> Response:
        self.keys.append(request.headers.get("authorization"))
        if request.method == "GET":
            return Response(PICTURE, media_type="image/png")
        self.requests.append((request.url.path, await _fields(request)))
        if self.stream:
            return StreamingResponse(self._events(request), media_type="text/event-stream", headers=self.headers)
        self.started.set()
        if isinstance(self.body, bytes):
            return Response(self.body, self.status, self.headers)
        return JSONResponse(self.body, self.status, self.headers)

    async def _events(self, request: Request) -> AsyncIterator[bytes]:
        try:
            for frame in self.stream:
                yield frame
            self.started.set()
            if self.hang:
                while (await request.receive())["type"] != "http.disconnect":
                    pass
        finally:
            self.left.set()


async def _fields(request: Request) -> dict[str, object]:
    if request.headers["content-type"] == "application/json":
        return dict(await request.json())
    async with request.form() as form:
        found: dict[str, object] = {}
        for name, value in form.multi_items():
            told = value if isinstance(value, str) else (value.filename, value.content_type, await value.read())
            found[name] = [*found[name], told] if name.endswith("[]") and name in found else told
            if name.endswith("[]") and not isinstance(found[name], list):
                found[name] = [told]
        return found


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    for name in ("OPENAI_API_KEY", "TERM_PROGRAM", "KITTY_WINDOW_ID", "TMUX"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeServer()
    app = Starlette(routes=[Route("/{path:path}", fake.answer, methods=["GET", "POST"])])
    listener = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, name="uvicorn")
    thread.start()
    fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    yield fake
    running.should_exit = True
    thread.join(timeout=60)
    assert not thread.is_alive()

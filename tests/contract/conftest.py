"""The API in front of a fake pipeline, in-process and behind a real uvicorn server."""

from __future__ import annotations

import asyncio
import hashlib
import io
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image

from gateway.api.app import create_app
from gateway.database.database import Database
from gateway.decoding.decoders import Decoders
from gateway.service.interfaces import (
    UNCOUNTED,
    Admitted,
    Finished,
    ImageRequest,
    Listener,
    Partial,
    Place,
    Progress,
    PromptRead,
    Ready,
    StageReport,
    Took,
    unheard,
)
from gateway.settings import Settings
from tests.contract.metered import Metered
from tests.databases import prepared
from wire.params import Adapter, ImageParams, ModelInfo, Workflow
from wire.types import Role

ALL_INPUTS = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "max_sequence_length")


EDIT_WORKFLOWS = (
    Workflow("image2image", (*ALL_INPUTS, "image", "strength")),
    Workflow("inpainting", (*ALL_INPUTS, "image", "strength", "mask_image")),
)


def _model(name: str, workflows: tuple[Workflow, ...], **rules: object) -> ModelInfo:
    return ModelInfo(
        name=name,
        key=f"{name}@1",
        family="fake",
        dtype="float32",
        workflows=workflows,
        default_size=(64, 64),
        **rules,
    )


LORAS = (Adapter("style", "0a", (Role.DIT,)), Adapter("ink-2.1", "0b", (Role.ENCODER, Role.DIT)))

MODELS = (
    _model("tiny", (Workflow("text2image", ALL_INPUTS),), adapters=LORAS),
    _model("org/plain", (Workflow("text2image", ("prompt", "num_inference_steps")),), max_pixels=256 * 256),
    _model("editor", EDIT_WORKFLOWS, default_steps=8, adapters=LORAS[:1]),
    _model("instructor", (Workflow("image_conditioned", ("prompt", "image"), max_images=4),), max_pixels=512 * 512),
)


def _draw(params: ImageParams) -> bytes:
    """A genuine picture whose colour depends on everything that should change it."""
    digest = hashlib.sha256(f"{params.prompt}|{params.seed}|{params.num_inference_steps}".encode()).digest()
    picture = Image.new("RGB", (params.width, params.height), tuple(digest[:3]))
    buffer = io.BytesIO()
    picture.save(buffer, params.output_format)
    return buffer.getvalue()


@dataclass
class FakeService:
    """Draws at once, or does what the test tells it to."""

    served: tuple[ModelInfo, ...] = MODELS
    is_ready: bool = True
    error: Exception | None = None
    late_error: Exception | None = None
    """Raised once the first picture is ready."""
    prompt: PromptRead = UNCOUNTED
    hang: bool = False
    is_admitted: bool = False
    """Before it hangs."""
    waiting: Place | None = None
    """Each request is there until it has been asked about twice."""
    places: dict[str, Place] = field(default_factory=dict)
    """By request id."""
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[ImageRequest] = field(default_factory=list)
    resumed: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop | None = None
    started: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def models(self) -> tuple[ModelInfo, ...]:
        return self.served

    def ready(self) -> bool:
        return self.is_ready

    def status(self) -> dict[str, object]:
        return {"tiny": {Role.ENCODER: 1, Role.DIT: 0, "missing": [Role.DIT]}}

    def resume(self) -> None:
        """What hangs goes on, on whatever thread it is."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.resumed.set)

    async def generate(self, request: ImageRequest, listener: Listener = unheard) -> Finished:
        self.requests.append(request)
        self.loop = asyncio.get_running_loop()
        self.started.set()
        try:
            if self.is_admitted:
                listener(Admitted(1.25))
            if self.waiting is not None:
                await self._wait(request, listener)
            if self.hang:
                await self.resumed.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.error is not None:
            raise self.error
        stages = (
            StageReport("encoder", None, "cpu-1/ab", 1, 0.001, 0.002, 0.003, 0.004),
            *(StageReport("dit", i, "gpu 1", 2, 0.0, 0.0, 0.5, 0.0, 8) for i in range(len(request.images))),
        )
        pictures = tuple(map(_draw, request.images))
        listener(Admitted(1.25))
        for stage in stages:
            listener(Took(stage.role, stage.compute_seconds))
        for image, picture in enumerate(pictures):
            listener(Progress(image, 1, 8))
            for index in range(request.images[image].previews):
                listener(Partial(image, index, picture))
            listener(Ready(image, picture, self.prompt))
            if self.late_error is not None:
                raise self.late_error
        return Finished(pictures, stages, predicted_seconds=1.25, prompt=self.prompt)

    def place(self, request_id: str) -> Place | None:
        self.asked.set()
        return self.places.get(request_id)

    async def _wait(self, request: ImageRequest, listener: Listener) -> None:
        listener(Admitted(1.25))
        self.places[request.request_id] = self.waiting
        for _ in range(2):
            self.asked.clear()
            await self.asked.wait()
        del self.places[request.request_id]


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def settings() -> Settings:
    """Tests of other settings override this fixture by parametrisation."""
    return Settings(
        model_aliases={"gpt-image-1": "tiny", "dall-e-3": "tiny", "gone": "not-served"},
        max_body_bytes=64 << 10,
        deadline_grace_seconds=0.05,
    )


@pytest.fixture(scope="session")
def decoders() -> Iterator[Decoders]:
    """Of all tests: they belong to no event loop."""
    shared = Decoders(Settings().max_image_pixels)
    yield shared
    shared.close()


Connect = Callable[..., httpx.AsyncClient]


@pytest.fixture
async def connect(service: FakeService, settings: Settings, decoders: Decoders) -> AsyncIterator[Connect]:
    """Opens clients of an app with the given changes to the settings."""
    clients = []

    def open_client(**changes: object) -> httpx.AsyncClient:
        app = create_app(service, settings.model_copy(update=changes), decoders=decoders)
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway.test")
        clients.append(client)
        return client

    yield open_client
    for client in clients:
        await client.aclose()


@pytest.fixture
def client(connect: Connect) -> httpx.AsyncClient:
    return connect()


@pytest.fixture
def live(service: FakeService, settings: Settings, decoders: Decoders) -> Iterator[str]:
    """Base url of a real server."""
    with _served(create_app(service, settings, decoders=decoders)) as url:
        yield url


@pytest.fixture
def settings_changes() -> dict[str, object]:
    return {}


@pytest.fixture
def live_with_jobs(
    service: FakeService, settings: Settings, settings_changes: dict[str, object], tmp_path: Path
) -> Iterator[str]:
    """The same with a database, and all that runs beside it."""
    settings = Settings(**settings.model_dump() | {"state_dir": prepared(tmp_path)} | settings_changes)
    database = Database(settings)

    @asynccontextmanager
    async def beside(app: FastAPI) -> AsyncIterator[None]:
        await database.open()
        running = asyncio.create_task(app.state.api.desk.run(), name="jobs")
        yield
        assert not running.done(), running
        running.cancel()
        await asyncio.wait([running])
        await database.close()

    with _served(create_app(service, settings, database=database, lifespan=beside)) as url:
        yield url


@contextmanager
def _served(app: FastAPI) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", proxy_headers=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="uvicorn")
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=60)
    assert not thread.is_alive()


@pytest.fixture
async def metered(service, settings, tmp_path) -> AsyncIterator[Metered]:
    database = Database(settings.model_copy(update={"state_dir": prepared(tmp_path)}))
    await database.open()
    metered = Metered(service, settings, database, tmp_path)
    yield metered
    await metered.close()
    await database.close()

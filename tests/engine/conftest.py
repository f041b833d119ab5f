"""Fixtures of the engine tests: tiny models on disk, engines that hold one role each, and the monolithic reference."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import ModularPipeline
from PIL import Image as PilImage

import tests.engine.families
from stage_server.engine.base import Preview, StageJob, Unwatched
from stage_server.engine.diffusers_engine import DiffusersEngine
from tests.engine.both_ways import over_the_wire, whole
from wire.params import ImageParams
from wire.types import REQUIRED, Role
from wire.values import Image, Tensor, Value

BUNDLED = "tiny-shapes"


class Steps(Unwatched):
    """A ``JobControl`` that records what it is told, and then does what the test wants."""

    def __init__(self, then: Callable[[int], None] = lambda _step: None) -> None:
        self.seen: list[tuple[int, int]] = []
        self.previews: list[Preview] = []
        self.prompt: tuple[int, int] | None = None
        self.company: list[int] = []
        self._then = then

    def computed(self, company: int) -> None:
        self.company.append(company)

    def preview(self, preview: Preview) -> None:
        self.previews.append(preview)

    def prompt_read(self, tokens: int, dropped: int) -> None:
        self.prompt = tokens, dropped

    def step_done(self, step: int, steps: int) -> None:
        self.seen.append((step, steps))
        self._then(step)


@pytest.fixture
def steps() -> type[Steps]:
    return Steps


@pytest.fixture
def png() -> bytes:
    buffer = io.BytesIO()
    PilImage.linear_gradient("L").convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def families() -> ModuleType:
    return tests.engine.families


@pytest.fixture(scope="session")
def model_folder(families: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Family → a folder with its tiny model, built once; the bundled model's name stands for itself."""
    built: dict[str, str] = {BUNDLED: BUNDLED}

    def folder(family: str) -> str:
        if family in families.NEED_TORCHVISION:
            pytest.importorskip("torchvision")
        if family not in built:
            built[family] = str(families.build(family, tmp_path_factory.mktemp(family)))
        return built[family]

    return folder


@pytest.fixture(scope="session")
def split_engines(model_folder: Callable[[str], str]) -> Callable[[str], Mapping[Role, DiffusersEngine]]:
    """Family → three engines, each of which holds only its role."""
    opened: dict[str, dict[Role, DiffusersEngine]] = {}

    def engines(family: str) -> Mapping[Role, DiffusersEngine]:
        if family not in opened:
            together = dict.fromkeys(REQUIRED, 8)
            opened[family] = {role: DiffusersEngine(model_folder(family), together=together) for role in REQUIRED}
            for role, engine in opened[family].items():
                engine.set_roles(frozenset({role}))
        return opened[family]

    return engines


def flat_bytes(value: Any) -> bytes:
    """The payload of all tensors and pictures in a value."""
    if isinstance(value, Tensor):
        return bytes(value.data)
    if isinstance(value, Image):
        return value.png
    if isinstance(value, bytes):
        return value
    if isinstance(value, Mapping):
        return b"".join(flat_bytes(item) for item in value.values())
    if isinstance(value, list | tuple):
        return b"".join(flat_bytes(item) for item in value)
    return b""


@pytest.fixture
def payload() -> Callable[[Any], bytes]:
    return flat_bytes


@pytest.fixture(scope="session")
def generate() -> Callable[..., PilImage.Image]:
    """Run a picture through encoder, dit and decoder engines, values crossing as between processes."""

    def run(
        engines: Mapping[Role, DiffusersEngine], params: ImageParams, images: Mapping[str, bytes] | None = None
    ) -> PilImage.Image:
        inbox: dict[str, dict[str, Value]] = {role: {} for role in REQUIRED} | {"image": {}}
        for role in REQUIRED:
            uploads = images or {}
            seen = uploads if role is Role.ENCODER or (role is Role.DECODER and "mask_image" in uploads) else {}
            job = StageJob(role, params, seen)
            before = flat_bytes(inbox[role])
            outputs = engines[role].run(job, inbox[role], Steps())
            assert flat_bytes(inbox[role]) == before  # received buffers are shared, so blocks must not write to them
            assert len(flat_bytes(outputs)) <= engines[role].output_bound(job)
            for port, values in outputs.items():
                inbox[port] |= {name: over_the_wire(value) for name, value in values.items()}
        data = inbox["image"]["image"]
        assert isinstance(data, bytes)
        return PilImage.open(io.BytesIO(data))

    return run


@pytest.fixture(scope="module")
def monolith(model_folder: Callable[[str], str]) -> Callable[[str], ModularPipeline]:
    """Family → its whole pipeline, loaded once."""
    loaded: dict[str, ModularPipeline] = {}

    def load(family: str) -> ModularPipeline:
        if family not in loaded:
            loaded[family] = whole(model_folder(family))
        return loaded[family]

    return load

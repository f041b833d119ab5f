"""Introductions, models and requests to build tests from."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.service.interfaces import ImageRequest
from wire.params import ImageParams, ModelInfo, Workflow
from wire.to_gateway import Hello, RoleInfo
from wire.types import REQUIRED, Role
from wire.version import PROTOCOL

TEXT = ("prompt", "num_inference_steps", "guidance_scale")


def make_model(name: str = "tiny", revision: str = "1", **changes: object) -> ModelInfo:
    fields: dict[str, object] = {
        "name": name,
        "key": f"{name}@{revision}",
        "family": "z-image",
        "dtype": "float32",
        "workflows": (
            Workflow("text2image", TEXT),
            Workflow("image2image", (*TEXT, "image", "strength")),
            Workflow("inpainting", TEXT, ((Role.ENCODER, Role.DIT), (Role.ENCODER, Role.DECODER))),
        ),
        "default_steps": 12,
        "default_guidance": 3.0,
    }
    return ModelInfo(**(fields | changes))


def make_hello(name: str = "a", incarnation: str = "1", **changes: object) -> Hello:
    fields: dict[str, object] = {
        "protocol": PROTOCOL,
        "name": name,
        "incarnation": incarnation,
        "model": make_model(),
        "device_class": "cpu-1",
        "memory_bytes": 1 << 30,
        "capable": {role: RoleInfo() for role in REQUIRED},
        "roles": REQUIRED,
        "data_endpoint": "tcp://127.0.0.1:9",
        "limits": dict.fromkeys(REQUIRED, 2),
    }
    return Hello(**(fields | changes))


def make_request(n: int = 1, *, request_id: str = "r", previews: int = 0, **changes: object) -> ImageRequest:
    fields: dict[str, object] = {"prompt": "a red circle", "width": 64, "height": 48, "negative_prompt": "blue"}
    fields["previews"] = previews
    images = tuple(ImageParams(**(fields | {"seed": 7 + index})) for index in range(n))
    given: dict[str, object] = {"model": "tiny", "images": images, "deadline_seconds": 10.0}
    return ImageRequest(request_id=request_id, **(given | changes))


@pytest.fixture
def hello() -> Callable[..., Hello]:
    return make_hello


@pytest.fixture
def model() -> Callable[..., ModelInfo]:
    return make_model


@pytest.fixture
def request_for() -> Callable[..., ImageRequest]:
    return make_request

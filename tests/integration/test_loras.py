"""LoRAs through the whole service, with the bundled model: one server of the dit has them, another has not."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.live.conftest import until
from tests.loras import lora, write
from tests.picture_service import KEY, MODEL, PictureService, Stage, picture_service, quick_model

pytestmark = pytest.mark.services

SIDE, STEPS = 64, 4
PROMPT = "a large red circle in the center on a white background"
KINDS = (None, "a", "b", {"name": "a", "scale": -0.5}, ["a", {"name": "b", "scale": 0.5}])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate("abc"):
        write(folder / f"{name}.safetensors", lora(MODEL, seed))
    return folder


@pytest.fixture(scope="module")
def service(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PictureService]:
    folder = tmp_path_factory.mktemp("service")
    model = quick_model(folder, SIDE, STEPS)
    stages = {
        "rest": Stage("encoder,decoder", model),
        "plain": Stage("dit", model),
        "adapted": Stage("dit", model, ("-m", "stage_server", "--adapters-folder", str(files))),
    }
    with picture_service(folder, stages, {}) as running:
        yield running


@pytest.fixture(scope="module")
def client(service: PictureService) -> Iterator[httpx.Client]:
    """Once the server that has them is there: the service is ready before, without."""
    with httpx.Client(base_url=service.url, headers={"authorization": f"Bearer {KEY}"}, timeout=300) as client:
        until(lambda: client.get(f"/v1/models/{MODEL}").json()["loras"], "the models tell LoRAs")
        yield client


def draw(client: httpx.Client, kind: object, seed: int = 7) -> bytes:
    body = {"prompt": PROMPT, "seed": seed, "lora": kind}
    response = client.post("/v1/images/generations", json=body)
    assert response.status_code == 200, response.text
    return base64.b64decode(response.json()["data"][0]["b64_json"])


def test_every_picture_has_its_own_loras_whatever_is_drawn_beside_it(client: httpx.Client) -> None:
    assert client.get(f"/v1/models/{MODEL}").json()["loras"] == ["a", "b", "c"]
    alone = [draw(client, kind) for kind in KINDS]
    assert len(set(alone)) == len(KINDS)
    with ThreadPoolExecutor(8) as pool:
        together = [*pool.map(lambda number: draw(client, KINDS[number % len(KINDS)]), range(3 * len(KINDS)))]
    assert together == alone * 3


def test_edits_take_them_from_forms(client: httpx.Client) -> None:
    picture = ("a.png", draw(client, None), "image/png")
    answers = set()
    for fields in ({}, {"lora[][name]": "a", "lora[][scale]": "0.5"}, {"lora": '{"name": "a", "scale": 0.5}'}):
        form = {"model": MODEL, "prompt": "a large blue circle on white", "seed": "7", **fields}
        response = client.post("/v1/images/edits", data=form, files={"image": picture})
        assert response.status_code == 200, response.text
        answers.add(response.json()["data"][0]["b64_json"])
    assert len(answers) == 2


def test_what_cannot_be_applied_is_told_with_its_reason(client: httpx.Client, files: Path) -> None:
    unknown = client.post("/v1/images/generations", json={"prompt": "x", "lora": "z"})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "lora")
    assert "no LoRA 'z'; it has a, b, c." in unknown.json()["error"]["message"]
    damaged = files / "c.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    refused = client.post("/v1/images/generations", json={"prompt": "x", "lora": "c"})
    assert refused.status_code == 400, refused.text
    message = refused.json()["error"]["message"]
    assert message == "The LoRA 'c' cannot be used: it has changed since the server was started."

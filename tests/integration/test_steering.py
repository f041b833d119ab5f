"""ControlNets and guiders through the whole service, by OpenAI's client: a tiny SDXL on three stage servers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.contract.test_edits import data_url, png
from tests.live.test_generations import opened
from tests.picture_service import KEY, ROOT, PictureService, Stage, picture_service

pytestmark = pytest.mark.services

SIDE = 64
FAMILY = "stable-diffusion-xl"
BUILD = f"""
import sys
from pathlib import Path
from tests.engine.families import build
from tests.engine.tiny.controls import build_controls, build_ip_adapters
folder = Path(sys.argv[1])
build({FAMILY!r}, folder / "steered")
build_controls({FAMILY!r}, folder)
build_ip_adapters(folder)
"""
"""In a process of its own: torch is heavy, and drawing random weights is not ours."""

LEFT, RIGHT = (png(SIDE, SIDE, colour=colour) for colour in ("black", "white"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PictureService]:
    folder = tmp_path_factory.mktemp("steering")
    model = folder / "steered"
    model.mkdir()
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], check=True, capture_output=True, cwd=ROOT)
    (model / "serving.json").write_text(f'{{"default_size": [{SIDE}, {SIDE}], "default_steps": 3}}')
    controls = [part for name in ("canny", "union") for part in ("--control", f"{name}={folder / name}")]
    adapter = (
        "--ip-adapter",
        f"style={folder / 'style.safetensors'}",
        "--image-encoder",
        str(folder / "image_encoder"),
    )
    program = ("-m", "stage_server", *controls, *adapter)
    stages = {role: Stage(role, model, program) for role in ("encoder", "dit", "decoder")}
    with picture_service(folder, stages, {}) as running:
        yield running


@pytest.fixture(scope="module")
def sdk(service: PictureService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def draw(sdk: openai.OpenAI, **extra: object) -> str:
    answer = sdk.images.generate(model="steered", prompt="a red circle", extra_body={"seed": 7, **extra})
    (item,) = answer.data or ()
    assert item.b64_json is not None
    assert opened(item.b64_json).size == (SIDE, SIDE)
    return item.b64_json


def control(picture: bytes, **fields: object) -> dict[str, object]:
    return {"name": "canny", "image": data_url(picture), **fields}


def test_pictures_steer_and_guiders_guide(sdk: openai.OpenAI, tmp_path: Path) -> None:
    file = tmp_path / "edges.png"
    file.write_bytes(LEFT)
    uploaded = sdk.files.create(file=file, purpose="vision")
    plain = draw(sdk)
    steered = draw(sdk, control=control(LEFT))
    others = [
        draw(sdk, control=control(RIGHT)),
        draw(sdk, control=control(LEFT, scale=0.2)),
        draw(sdk, control=control(LEFT, end=0.4)),
        draw(sdk, control=control(LEFT, name="union", mode=1)),
        draw(sdk, guider={"name": "pag", "start": 0, "stop": 1}),
        draw(sdk, ip_adapter=control(LEFT, name="style")),
        draw(sdk, ip_adapter=control(LEFT, name="style"), control=control(LEFT)),
        draw(sdk, control=control(LEFT), guider={"name": "apg", "eta": 0.0}),
    ]
    assert len({plain, steered, *others}) == 2 + len(others)
    assert draw(sdk, control={"name": "canny", "image": {"file_id": uploaded.id}}) == steered
    assert draw(sdk, control=control(LEFT, scale=0)) == plain


def test_edits_are_steered_too(sdk: openai.OpenAI) -> None:
    def edited(**extra: object) -> str | None:
        answer = sdk.images.edit(
            model="steered", image=RIGHT, prompt="a blue circle", extra_body={"seed": 7, "strength": 1.0, **extra}
        )
        return (answer.data or [])[0].b64_json

    mask = png(SIDE, SIDE, mode="RGBA")
    assert edited() != edited(control=json.dumps(control(LEFT)))
    masked = sdk.images.edit(
        model="steered",
        image=RIGHT,
        mask=mask,
        prompt="a blue circle",
        extra_body={"control": json.dumps(control(LEFT, name="union", mode=2))},
    )
    assert masked.data


def test_what_the_model_cannot_do_is_told(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="has no ControlNet 'depth'; it has canny, union"):
        draw(sdk, control=control(LEFT, name="depth"))
    with pytest.raises(openai.BadRequestError, match="takes no guider 'mambo_g'; it takes cfg, "):
        draw(sdk, guider="mambo_g")

"""ControlNets: three engines draw what the whole pipeline draws with the same one, and each job has its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
from diffusers import ModularPipeline, QwenImageMultiControlNetModel
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from PIL import Image

from stage_server.engine.base import BadJob, LoadError, StageJob
from stage_server.engine.diffusers_engine import DiffusersEngine
from tests.engine.both_ways import PROMPT, as_png, made_by_split, made_by_whole, picture, split, whole
from tests.engine.families import build
from tests.engine.tiny.controls import UNION, build_controls
from wire.params import ControlUse, ImageParams
from wire.types import Role

SDXL, QWEN = "stable-diffusion-xl", "qwen-image"
CANNY, DEPTH = ControlUse("canny", 0.7), ControlUse("depth", 1.3, 0.0, 0.7)
LINES, POSES = ControlUse(UNION, 0.8, mode=2), ControlUse(UNION, 0.8, mode=0)
KINDS = {"canny": diffusers.ControlNetModel, "depth": diffusers.ControlNetModel, UNION: diffusers.ControlNetUnionModel}


@dataclass
class Bench:
    engines: Mapping[Role, DiffusersEngine]
    pipeline: ModularPipeline
    nets: Mapping[str, Any]
    family: str
    sources: Mapping[str, str]

    def asked(self, workflow: str, *uses: ControlUse, **options: Any) -> ImageParams:
        given = {"width": 96, "height": 64, "num_inference_steps": 3, "guidance_scale": 3.0, "seed": 11, **options}
        if not workflow.endswith("text2image"):
            given["strength"] = 0.7
        return ImageParams(workflow=workflow, prompt=PROMPT, negative_prompt="a blue star", controls=uses, **given)

    def by_engines(self, params: ImageParams, images: Mapping[str, Any]) -> Any:
        sent = {name: as_png(image) for name, image in images.items() if name != "control_image"}
        for index, image in enumerate(images.get("control_image", ())):
            sent[f"control_image_{index}" if index else "control_image"] = as_png(image)
        return made_by_split(self.engines, params, sent)

    def by_pipeline(self, params: ImageParams, images: Mapping[str, Any]) -> Any:
        several = QwenImageMultiControlNetModel if self.family == QWEN else MultiControlNetModel
        uses, is_union = params.controls, params.controls[0].mode is not None
        nets = [self.nets[use.name] for use in uses]
        self.pipeline.update_components(controlnet=several(nets) if len(nets) > 1 and not is_union else nets[0])
        sent = images["control_image"]
        return made_by_whole(
            self.pipeline, params, {**images, "control_image": list(sent) if len(nets) > 1 or is_union else sent[0]}
        )


def _bench(family: str, folder: Path) -> Bench:
    (folder / "model").mkdir()
    model, sources = build(family, folder / "model"), build_controls(family, folder)
    kinds = KINDS if family == SDXL else dict.fromkeys(sources, diffusers.QwenImageControlNetModel)
    nets = {name: kinds[name].from_pretrained(source) for name, source in sources.items()}
    return Bench(split(model, sources), whole(model), nets, family, sources)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return _bench(SDXL, tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return _bench(QWEN, tmp_path_factory.mktemp("qwen"))


def uploads(workflow: str, count: int = 1) -> dict[str, Any]:
    edge = picture("L").point(lambda value: 255 * (value > 128)).convert("RGB")
    sent: dict[str, Any] = {"control_image": [edge, picture("RGB").rotate(180)][:count]}
    if not workflow.endswith("text2image"):
        sent["image"] = picture("RGB")
    return sent | ({"mask_image": picture("L")} if workflow.endswith("inpainting") else {})


def is_equal(bench: Bench, workflow: str, *uses: ControlUse, **options: Any) -> bytes:
    """Raises unless both draw the same. The pixels."""
    params, images = bench.asked(workflow, *uses, **options), uploads(workflow, len(uses))
    ours, theirs = bench.by_engines(params, images), bench.by_pipeline(params, images)
    if "mask_image" in images:
        theirs = Image.composite(theirs, images["image"], images["mask_image"])
    assert ours.tobytes() == theirs.tobytes()
    assert len(set(ours.tobytes())) > 10
    pixels: bytes = ours.tobytes()
    return pixels


TASKS = ("text2image", "image2image", "inpainting")


@pytest.mark.parametrize("task", TASKS)
def test_sdxl(sdxl: Bench, task: str) -> None:
    pixels = {is_equal(sdxl, f"controlnet_{task}", *uses) for uses in ((CANNY,), (DEPTH,), (CANNY, DEPTH))}
    assert len(pixels) == 3


@pytest.mark.parametrize("task", TASKS)
def test_sdxl_with_one_that_knows_several_kinds(sdxl: Bench, task: str) -> None:
    pixels = {is_equal(sdxl, f"controlnet_union_{task}", *uses) for uses in ((LINES,), (POSES,), (LINES, POSES))}
    assert len(pixels) == 3


@pytest.mark.parametrize("task", TASKS)
def test_qwen_image(qwen: Bench, task: str) -> None:
    pixels = {is_equal(qwen, f"controlnet_{task}", *uses) for uses in ((CANNY,), (DEPTH,))}
    assert len(pixels) == 2

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

from stage_server.engine.base import BadJob, LoadError, StageJob, Unwatched
from stage_server.engine.control_source import SteeringSources, named_controls, place_of
from stage_server.engine.diffusers_engine import DiffusersEngine
from tests.engine.both_ways import (
    PROMPT,
    as_png,
    calls_of_the_rest,
    made_by_split,
    made_by_whole,
    picture,
    split,
    whole,
)
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
        nets = nets[:1] if self.family == QWEN else nets
        self.pipeline.update_components(controlnet=several(nets) if len(uses) > 1 and not is_union else nets[0])
        sent = images["control_image"]
        return made_by_whole(
            self.pipeline, params, {**images, "control_image": list(sent) if len(uses) > 1 or is_union else sent[0]}
        )


def _bench(family: str, folder: Path) -> Bench:
    (folder / "model").mkdir()
    model, sources = build(family, folder / "model"), build_controls(family, folder)
    kinds = KINDS if family == SDXL else dict.fromkeys(sources, diffusers.QwenImageControlNetModel)
    nets = {name: kinds[name].from_pretrained(source) for name, source in sources.items()}
    return Bench(split(model, SteeringSources(sources)), whole(model), nets, family, sources)


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


def test_sdxls_one_reads_several_pictures(sdxl: Bench) -> None:
    twice = is_equal(sdxl, "controlnet_text2image", CANNY, ControlUse("canny", 0.3))
    assert twice != is_equal(sdxl, "controlnet_text2image", CANNY)


@pytest.mark.parametrize("task", TASKS)
def test_sdxl_with_one_that_knows_several_kinds(sdxl: Bench, task: str) -> None:
    pixels = {is_equal(sdxl, f"controlnet_union_{task}", *uses) for uses in ((LINES,), (POSES,), (LINES, POSES))}
    assert len(pixels) == 3


@pytest.mark.parametrize("task", TASKS)
def test_qwen_image(qwen: Bench, task: str) -> None:
    pixels = {is_equal(qwen, f"controlnet_{task}", *uses) for uses in ((CANNY,), (DEPTH,))}
    assert len(pixels) == 2


def test_qwen_images_one_takes_several_pictures(qwen: Bench) -> None:
    twice = is_equal(qwen, "controlnet_text2image", CANNY, ControlUse("canny", 0.3))
    assert twice != is_equal(qwen, "controlnet_text2image", CANNY)


@pytest.mark.parametrize(
    ("family", "uses", "calls"),
    [
        (SDXL, (CANNY,), [12, 8, 4]),
        (SDXL, (CANNY, DEPTH), [18, 12, 6]),
        (SDXL, (LINES, POSES), [12, 8, 4]),
        (QWEN, (CANNY,), [9, 6, 3]),
        (QWEN, (CANNY, CANNY), [12, 8, 4]),
    ],
)
def test_steps_that_were_done_elsewhere_are_not_computed_again(
    request: pytest.FixtureRequest, family: str, uses: tuple[ControlUse, ...], calls: list[int], steps: Any
) -> None:
    bench = request.getfixturevalue("sdxl" if family == SDXL else "qwen")
    kind = "controlnet_union_" if uses[0].mode is not None else "controlnet_"
    params = bench.asked(f"{kind}text2image", *uses)
    pictures = uploads("text2image", len(uses))["control_image"]
    images = {f"control_image_{at}" if at else "control_image": as_png(each) for at, each in enumerate(pictures)}
    encoder, dit = bench.engines[Role.ENCODER], bench.engines[Role.DIT]
    read = images if family == QWEN else {}
    given = encoder.run(StageJob(Role.ENCODER, params, read), {}, Unwatched())[Role.DIT]
    job = StageJob(Role.DIT, params, {} if read else images)
    assert calls_of_the_rest(dit, job, given, steps) == calls


def test_what_is_offered_tells_cost_and_modes_and_is_part_of_the_key(sdxl: Bench, qwen: Bench) -> None:
    info = sdxl.engines[Role.DIT].describe()
    assert [(control.name, control.modes) for control in info.controls] == [("canny", 0), ("depth", 0), (UNION, 3)]
    assert all(0.2 < control.share <= 1.0 for control in info.controls)
    controlled = {workflow.name: workflow for workflow in info.workflows if workflow.name.startswith("controlnet")}
    assert set(controlled) == {f"controlnet_{kind}{task}" for kind in ("", "union_") for task in TASKS}
    assert all("control_image" in workflow.inputs for workflow in controlled.values())
    assert not any("control_image" in workflow.encoder_inputs for workflow in controlled.values())
    of_qwen = {workflow.name: workflow for workflow in qwen.engines[Role.DIT].describe().workflows}
    assert "control_image" in of_qwen["controlnet_text2image"].encoder_inputs  # its autoencoder reads them
    assert "controlnet_union_text2image" not in of_qwen
    keys = {engine.describe().key for engine in sdxl.engines.values()}
    assert len(keys) == 1
    plain = DiffusersEngine(str(sdxl.engines[Role.DIT]._components._checkpoint.source))
    assert plain.describe().key not in keys
    assert {workflow.name for workflow in plain.describe().workflows} == set(TASKS)


def test_only_the_dit_holds_their_weights(sdxl: Bench, qwen: Bench) -> None:
    for bench in (sdxl, qwen):
        names = {f"controlnet:{name}" for name in bench.sources}
        for role, engine in bench.engines.items():
            assert engine._components.resident & names == (names if role is Role.DIT else set())


@pytest.mark.parametrize(
    ("uses", "words"),
    [
        ((), "needs ControlNets, and a picture for each"),
        ((ControlUse("sketch"),), "has no ControlNet 'sketch'; it has canny, depth, union"),
        ((ControlUse(UNION),), "needs a 'mode' from 0 to 2"),
        ((ControlUse(UNION, mode=3),), "has the modes 0 to 2, not 3"),
        ((ControlUse("canny", mode=0),), "takes no 'mode'"),
        ((ControlUse("canny", 1.0, 0.5, 0.5),), "would end at 0.5 of the steps and start at 0.5"),
        ((LINES, CANNY), "'union' and 'canny' cannot be used together"),
        ((LINES, ControlUse(UNION, 0.1, mode=1)), "share 'scale', 'start' and 'end'"),
        ((CANNY, DEPTH), "2 ControlNets need as many pictures, not 1"),
    ],
)
def test_what_cannot_be_is_refused(sdxl: Bench, uses: tuple[ControlUse, ...], words: str) -> None:
    job = StageJob(Role.DIT, sdxl.asked("controlnet_text2image", *uses), {"control_image": as_png(picture())})
    with pytest.raises(BadJob, match=words):
        sdxl.engines[Role.DIT].output_bound(job)


def test_a_picture_that_nobody_reads_is_refused(sdxl: Bench) -> None:
    job = StageJob(Role.DIT, sdxl.asked("text2image"), {"control_image": as_png(picture())})
    with pytest.raises(BadJob, match="control_image has no effect"):
        sdxl.engines[Role.DIT].output_bound(job)


def test_sources_that_cannot_be_used_are_named(sdxl: Bench, qwen: Bench, tmp_path: Path) -> None:
    folder = str(sdxl.engines[Role.DIT]._components._checkpoint.source)
    with pytest.raises(LoadError, match=r"canny .* is a QwenImageControlNetModel; this model takes ControlNetModel or"):
        DiffusersEngine(folder, steering=SteeringSources({"canny": qwen.sources["canny"]}))
    with pytest.raises(LoadError, match=r"has no config\.json"):
        DiffusersEngine(folder, steering=SteeringSources({"canny": str(tmp_path)}))
    with pytest.raises(LoadError, match="neither a folder nor a hub id; write NAME=FOLDER or"):
        DiffusersEngine(folder, steering=SteeringSources({"canny": "nowhere"}))
    with pytest.raises(LoadError, match="no workflow of ZImageAutoBlocks takes a ControlNet"):
        DiffusersEngine("tiny-shapes", steering=SteeringSources({"canny": sdxl.sources["canny"]}))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["canny"], "--control 'canny': write NAME=FOLDER"),
        (["canny="], "--control 'canny=': write NAME=FOLDER"),
        (["ca nny=a/b"], "a name has up to 100 letters"),
        (["canny=a/b", "canny=c/d"], "--control names canny twice"),
    ],
)
def test_options_that_say_nothing_are_refused(given: list[str], words: str) -> None:
    with pytest.raises(LoadError, match=words):
        named_controls(given)


def test_hub_ids_have_revisions_and_folders() -> None:
    assert named_controls(["a=b/c@v1:d", "e=/f"]) == {"a": "b/c@v1:d", "e": "/f"}
    assert place_of("a", "b/c@v1:d/e") == ("b/c", "v1", "d/e")
    assert place_of("a", "b/c") == ("b/c", None, "")

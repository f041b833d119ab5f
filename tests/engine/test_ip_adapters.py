"""IP-Adapters: three engines draw what the whole pipeline draws with the same one, and jobs without are as before."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers import ControlNetModel, ModularPipeline
from PIL import Image
from safetensors.torch import save_file

from stage_server.engine.base import BadJob, LoadError, StageJob, Unwatched
from stage_server.engine.control_source import SteeringSources
from stage_server.engine.default_dtype import guarded
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.weight_formats import WeightFormat
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
from tests.engine.tiny.controls import build_controls, build_ip_adapters, load_ip_adapter
from tests.loras import lora, write
from wire.params import AdapterUse, ControlUse, ImageParams, IPAdapterUse
from wire.types import Role

FAMILY = "stable-diffusion-xl"
PATIENCE = 240.0
CANNY = ControlUse("canny", 0.7)


@dataclass
class Bench:
    engines: Mapping[Role, DiffusersEngine]
    pipeline: ModularPipeline
    model: str
    sources: SteeringSources


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("ip")
    (folder / "model").mkdir()
    model = str(build(FAMILY, folder / "model"))
    ip_adapters, encoder = build_ip_adapters(folder)
    controls = {"canny": build_controls(FAMILY, folder)["canny"]}
    sources = SteeringSources(controls, ip_adapters, encoder)
    pipeline = whole(model)
    pipeline.update_components(controlnet=ControlNetModel.from_pretrained(controls["canny"]))
    return Bench(split(model, sources), pipeline, model, sources)


def asked(workflow: str, use: IPAdapterUse | None, **options: Any) -> ImageParams:
    given = {"width": 96, "height": 64, "num_inference_steps": 3, "guidance_scale": 3.0, "seed": 11, **options}
    if not workflow.endswith("text2image"):
        given["strength"] = 0.7
    if "controlnet" in workflow:
        given["controls"] = (CANNY,)
    return ImageParams(workflow=workflow, prompt=PROMPT, negative_prompt="a blue star", ip_adapter=use, **given)


def uploads(workflow: str) -> dict[str, Image.Image]:
    sent = {"ip_adapter_image": picture("RGB").rotate(180)} if workflow.startswith("ip_adapter") else {}
    if "controlnet" in workflow:
        sent["control_image"] = picture("RGB")
    if not workflow.endswith("text2image"):
        sent["image"] = picture("RGB")
    return sent | ({"mask_image": picture("L")} if workflow.endswith("inpainting") else {})


def drawn(bench: Bench, params: ImageParams) -> bytes:
    images = {name: as_png(image) for name, image in uploads(params.workflow).items()}
    made = made_by_split(bench.engines, params, images)
    assert isinstance(made, Image.Image)
    return made.tobytes()


TASKS = [f"ip_adapter_{control}{task}" for control in ("", "controlnet_")
         for task in ("text2image", "image2image", "inpainting")]  # fmt: skip


def test_each_task_is_that_of_the_whole_pipeline_and_others_are_as_before(bench: Bench) -> None:
    plain = drawn(bench, asked("text2image", None))
    assert plain == made_by_whole(bench.pipeline, asked("text2image", None), {}).tobytes()
    load_ip_adapter(bench.pipeline, bench.sources, "style", 0.6)
    scales = set()
    for scale in (0.6, 1.0):
        bench.pipeline.set_ip_adapter_scale(scale)
        for task in TASKS if scale == 0.6 else TASKS[:1]:
            params, images = asked(task, IPAdapterUse("style", scale)), uploads(task)
            theirs = made_by_whole(bench.pipeline, params, images)
            if "mask_image" in images:
                theirs = Image.composite(theirs, images["image"], images["mask_image"])
            ours = drawn(bench, params)
            assert ours == theirs.tobytes(), task
            if task == TASKS[0]:
                scales |= {ours}
    assert len({plain, *scales}) == 3
    assert drawn(bench, asked("text2image", None)) == plain


def test_the_plus_kind_reads_what_is_hidden_in_the_encoder(bench: Bench) -> None:
    """By a resampler of four layers."""
    pipeline = whole(bench.model)
    load_ip_adapter(pipeline, bench.sources, "plus", 0.6)
    drawn_by = set[bytes]()
    for task in ("ip_adapter_text2image", "ip_adapter_inpainting"):
        params, images = asked(task, IPAdapterUse("plus", 0.6)), uploads(task)
        theirs = made_by_whole(pipeline, params, images)
        if "mask_image" in images:
            theirs = Image.composite(theirs, images["image"], images["mask_image"])
        ours = drawn(bench, params)
        assert ours == theirs.tobytes(), task
        drawn_by |= {ours, drawn(bench, asked(task, IPAdapterUse("style", 0.6)))}
    assert len(drawn_by) == 4, "its picture counts"


def test_a_lora_changes_its_denoiser_too(bench: Bench, tmp_path: Path) -> None:
    """Of which the job has a tree of its own."""
    path = write(tmp_path / "paint.safetensors", lora(bench.model, 1, "unet"))
    engines = split(bench.model, bench.sources, adapters={"paint": path}, adapter_bytes=1 << 30)
    both = Bench(engines, bench.pipeline, bench.model, bench.sources)
    (offered,) = engines[Role.DIT].describe().adapters

    def painted(scale: float) -> bytes:
        use = AdapterUse("paint", offered.digest, scale)
        return drawn(both, asked("ip_adapter_text2image", IPAdapterUse("style"), adapters=(use,)))

    plain = drawn(bench, asked("ip_adapter_text2image", IPAdapterUse("style")))
    assert painted(0.0) == plain
    assert len({plain, painted(1.0), painted(2.0)}) == 3


def test_steps_that_were_done_elsewhere_are_not_computed_again(bench: Bench, steps: Any) -> None:
    params = asked("ip_adapter_text2image", IPAdapterUse("style"))
    images = {"ip_adapter_image": as_png(uploads(params.workflow)["ip_adapter_image"])}
    given = bench.engines[Role.ENCODER].run(StageJob(Role.ENCODER, params, images), {}, Unwatched())[Role.DIT]
    assert calls_of_the_rest(bench.engines[Role.DIT], StageJob(Role.DIT, params), given, steps) == [6, 4, 2]


def test_it_is_not_read_while_another_thread_reads_a_module(bench: Bench) -> None:
    params = asked("ip_adapter_text2image", IPAdapterUse("style"))
    before = drawn(bench, params)
    bench.engines[Role.DIT]._ip_adapters.clear()
    with ThreadPoolExecutor(1) as pool:
        with guarded(nullcontext), init_empty_weights():  # as the libraries read one
            again = pool.submit(drawn, bench, params)
            with pytest.raises(TimeoutError):
                again.result(0.5)
        assert again.result(PATIENCE) == before


def test_what_it_takes_is_where_it_is_used(bench: Bench) -> None:
    assert "image_encoder" in bench.engines[Role.ENCODER]._components.resident
    assert "image_encoder" not in bench.engines[Role.DIT]._components.resident
    info = bench.engines[Role.DIT].describe()
    assert info.ip_adapters == ("plus", "style")
    assert set(TASKS) <= {workflow.name for workflow in info.workflows}
    plain = DiffusersEngine(bench.model)
    assert plain.describe().key != info.key
    assert not any("ip_adapter" in workflow.name for workflow in plain.describe().workflows)


def test_what_cannot_be_is_refused(bench: Bench) -> None:
    picture_sent = {"ip_adapter_image": as_png(picture())}
    cases = [
        (
            asked("ip_adapter_text2image", IPAdapterUse("face")),
            picture_sent,
            "has no IP-Adapter 'face'; it has plus, style",
        ),
        (asked("ip_adapter_text2image", None), picture_sent, "needs an IP-Adapter"),
        (asked("text2image", IPAdapterUse("style")), {}, "no other task takes one"),
        (
            asked("ip_adapter_text2image", IPAdapterUse("style"), guidance_scale=1.0),
            picture_sent,
            "needs a guidance_scale above 1, not 1.0",
        ),
        (asked("ip_adapter_text2image", IPAdapterUse("style")), {}, "needs ip_adapter_image"),
    ]
    for params, images, words in cases:
        with pytest.raises(BadJob, match=words):
            bench.engines[Role.ENCODER].output_bound(StageJob(Role.ENCODER, params, images))


def test_sources_that_cannot_be_used_are_named(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="this one has none: add --image-encoder"):
        DiffusersEngine(bench.model, steering=SteeringSources(ip_adapters=bench.sources.ip_adapters))
    with pytest.raises(LoadError, match="no workflow of ZImageAutoBlocks takes an IP-Adapter"):
        DiffusersEngine("tiny-shapes", steering=SteeringSources(ip_adapters=bench.sources.ip_adapters))
    with pytest.raises(LoadError, match="neither compiled nor quantised"):
        DiffusersEngine(bench.model, formats={"unet": WeightFormat.INT8}, steering=bench.sources)
    stray = tmp_path / "stray.safetensors"
    save_file({"image_proj.proj.weight": next(iter(bench.pipeline.unet.parameters())).detach().clone()}, stray)
    sources = SteeringSources(ip_adapters={"x": str(stray)}, image_encoder=bench.sources.image_encoder)
    with pytest.raises(LoadError, match="is none that reads pictures"):
        DiffusersEngine(bench.model, steering=sources)


def test_a_denoiser_is_quantised_by_its_folder_or_by_the_option_which_goes_before(bench: Bench, tmp_path: Path) -> None:
    model = shutil.copytree(bench.model, tmp_path / "model")
    (model / "serving.json").write_text('{"quantize": {"unet": "float8-storage"}}')
    with pytest.raises(LoadError, match="neither compiled nor quantised"):
        DiffusersEngine(str(model), steering=bench.sources)
    DiffusersEngine(str(model), formats={"unet": WeightFormat.NONE}, steering=bench.sources)

"""What a model says about itself without loading weights, and which models are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import diffusers
import huggingface_hub
import pytest
from diffusers.modular_pipelines import ModularPipelineBlocks, QwenImageEditPlusAutoBlocks, SequentialPipelineBlocks

from stage_server.engine.base import LoadError, StageJob
from stage_server.engine.compiled import Compiler
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.geometry import Geometry
from stage_server.engine.job_view import quiet_loops
from stage_server.engine.split import WorkflowSplit, split_workflows
from stage_server.step_caches import parse
from wire.params import ImageParams, Workflow
from wire.types import Role
from wire.values import Tensor

ENCODER_DIT, ENCODER_DECODER, DIT_DECODER = (
    (Role.ENCODER, Role.DIT),
    (Role.ENCODER, Role.DECODER),
    (Role.DIT, Role.DECODER),
)
SIZE = ("height", "width", "num_inference_steps")


@pytest.fixture
def copied_model(tmp_path: Path, model_folder: Callable[[str], str]) -> Path:
    return Path(shutil.copytree(model_folder("z-image"), tmp_path / "copy"))


def crossing(split: WorkflowSplit, source: Role, target: Role) -> set[str]:
    return {output.name for output in split.crossing(source, target)}


def test_the_bundled_model() -> None:
    info = DiffusersEngine("tiny-shapes").describe()
    assert (info.name, info.family, info.dtype, info.size_multiple) == ("tiny-shapes", "z-image", "float32", 32)
    assert info.key.startswith("tiny-shapes@")
    assert info.quality_steps == {"low": 6, "medium": 12, "high": 20}
    assert set(info.revisions) == {"scheduler", "text_encoder", "tokenizer", "transformer", "vae"}
    text = Workflow(
        "text2image",
        ("prompt", "negative_prompt", *SIZE, "guidance_scale", "seed", "max_sequence_length"),
        (ENCODER_DIT, DIT_DECODER),
        encoder_inputs=("prompt", "negative_prompt", "max_sequence_length"),
    )
    assert info.workflows[0] == text
    assert [workflow.name for workflow in info.workflows] == ["text2image", "image2image", "inpainting"]


def test_what_may_change_bytes_is_part_of_the_key(model_folder: Callable[[str], str]) -> None:
    options = [{}, {"dtype": "bfloat16"}, {"attention_backend": "native"}, {"step_caches": {"low": parse("pyramid")}}]
    infos = [DiffusersEngine(model_folder("flux"), **each).describe() for each in options]
    assert len({info.key for info in infos}) == len(infos)
    assert [info.attention for info in infos] == ["", "", "native", ""]


def test_compiled_code_is_for_fast_requests_so_the_model_is_the_same(model_folder: Callable[[str], str]) -> None:
    compiled = DiffusersEngine(model_folder("flux"), compiler=Compiler()).describe()
    plain = DiffusersEngine(model_folder("flux")).describe()
    assert compiled.key == plain.key
    assert (compiled.compiled, plain.compiled) == (True, False)


@pytest.mark.parametrize(
    ("family", "workflows", "multiple", "steps", "guidance"),
    [
        ("z-image", ["text2image", "image2image", "inpainting"], 32, 8, None),
        ("flux", ["text2image", "image2image", "inpainting"], 16, 50, 3.5),
        ("flux-kontext", ["image_conditioned", "text2image"], 32, 50, 3.5),
        ("flux2-dev", ["text2image", "image_conditioned"], 16, 50, 4.0),
        ("flux2-klein", ["text2image", "image_conditioned"], 16, 50, None),
        ("flux2-klein-base", ["text2image", "image_conditioned"], 16, 50, 4.0),
        ("stable-diffusion-3", ["text2image", "image2image", "inpainting"], 16, 50, 7.0),
        ("stable-diffusion-xl", ["text2image", "image2image", "inpainting"], 8, 50, 7.5),
        ("qwen-image", ["text2image", "image2image", "inpainting"], 16, 50, 4.0),
    ],
)
def test_the_families(
    family: str,
    workflows: list[str],
    multiple: int,
    steps: int,
    guidance: float | None,
    split_engines: Callable[[str], Mapping[Role, DiffusersEngine]],
) -> None:
    info = split_engines(family)[Role.DIT].describe()
    assert [workflow.name for workflow in info.workflows] == workflows
    assert (info.size_multiple, info.default_steps, info.default_guidance) == (multiple, steps, guidance)
    text, image, *_ = sorted(info.workflows, key=lambda workflow: workflow.name != "text2image")
    assert ("guidance_scale" in text.inputs) == (guidance is not None or family == "z-image")
    assert ("negative_prompt" in text.inputs) == (not family.startswith("flux"))
    assert "image" not in text.inputs
    assert "image" in image.inputs


@pytest.mark.parametrize(
    ("family", "pictures"),
    [("flux-kontext", 1), ("flux2-dev", 6), ("flux2-klein-base", 4), ("qwen-image-edit-plus", 3)],
)
def test_how_many_pictures_a_family_takes(
    family: str, pictures: int, split_engines: Callable[[str], Mapping[Role, DiffusersEngine]]
) -> None:
    info = split_engines(family)[Role.DIT].describe()
    limits = {workflow.name: workflow.max_images for workflow in info.workflows}
    assert limits.pop("image_conditioned") == pictures
    assert set(limits.values()) <= {1}


def test_values_cross_where_blocks_read_them(
    split_engines: Callable[[str], Mapping[Role, DiffusersEngine]],
) -> None:
    """Trap 7: workflows flatten block names, and roles group them by prefix."""
    flux = split_engines("flux")[Role.DIT]._workflows["image2image"]
    assert [name.partition(".")[0] for name in flux.parts[Role.ENCODER].blocks.sub_blocks] == [
        "text_encoder",
        "vae_encoder",
        "vae_encoder",
    ]
    assert crossing(flux, *ENCODER_DIT) == {"prompt_embeds", "pooled_prompt_embeds", "image_latents", "generator"}
    assert crossing(flux, *DIT_DECODER) == {"latents"}
    inpainting = split_engines("qwen-image")[Role.DIT]._workflows["inpainting"]
    assert crossing(inpainting, *ENCODER_DECODER) == {"mask_overlay_kwargs"}
    assert inpainting.edges == (ENCODER_DIT, ENCODER_DECODER, DIT_DECODER)
    by_kind = split_engines("stable-diffusion-xl")[Role.DIT]._workflows["text2image"]
    assert {"negative_prompt_embeds", "negative_pooled_prompt_embeds"} <= crossing(by_kind, *ENCODER_DIT)


@pytest.mark.parametrize("family", ["flux", "flux2-klein", "qwen-image", "z-image", "stable-diffusion-xl"])
def test_latents_cross_unpacked(
    family: str, split_engines: Callable[[str], Mapping[Role, DiffusersEngine]], steps: type
) -> None:
    """Trap 8: what follows the loop inside ``denoise`` runs in the dit; the decoder reads pictures of latents."""
    engines = split_engines(family)
    params = ImageParams(prompt="a star", width=96, height=64, num_inference_steps=1)
    encoded = engines[Role.ENCODER].run(StageJob(Role.ENCODER, params), {}, steps())
    denoised = engines[Role.DIT].run(StageJob(Role.DIT, params), encoded[Role.DIT], steps())
    latents = denoised[Role.DECODER]["latents"]
    assert isinstance(latents, Tensor)
    assert latents.shape == engines[Role.DIT]._geometry.latent_shape(96, 64)


def test_the_key_tells_weights_configurations_and_dtypes_apart(copied_model: Path) -> None:
    def key(dtype: str = "float32") -> str:
        return DiffusersEngine(str(copied_model), dtype=dtype).describe().key

    first = key()
    assert key() == first
    assert key("bfloat16") != first
    config = copied_model / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"shift": 2.0}))
    second = key()
    assert second != first
    weights = copied_model / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert key() not in {first, second}


def test_a_hub_model_is_known_by_its_commit(
    copied_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--org--shapes"
    shutil.copytree(copied_model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    engine = DiffusersEngine("org/shapes", local_files_only=True)

    assert engine.describe().name == "org/shapes"
    assert engine._components.files["vae"].revision == commit
    assert (
        engine.capable()[Role.DIT].weight_bytes == DiffusersEngine(str(copied_model)).capable()[Role.DIT].weight_bytes
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("shapes", r"no model 'shapes': neither a bundled model \(tiny-shapes\), a folder, nor a hub id org/name"),
        ("./nowhere/model", "no model './nowhere/model'"),
        ("org/none", r"'org/none' \(revision main\) not found on the hub"),
    ],
)
def test_models_that_are_not_there(model: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        DiffusersEngine(model, local_files_only=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "abacus"}, "device 'abacus' is unknown"),
        ({"dtype": "int8"}, "dtype 'int8' cannot hold weights"),
        ({"dtype": "floaty"}, "dtype 'floaty' cannot hold weights"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, str], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        DiffusersEngine("tiny-shapes", **options)  # type: ignore[arg-type]


def index(folder: Path, **entries: object) -> Path:
    path = folder / "model_index.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | entries))
    return folder


def test_a_model_without_a_modular_pipeline_is_refused(tmp_path: Path) -> None:
    index(tmp_path, _class_name="LDMSuperResolutionPipeline")
    with pytest.raises(LoadError, match="no modular pipeline"):
        DiffusersEngine(str(tmp_path))


def test_blocks_that_cannot_be_split_are_refused() -> None:
    fused = SequentialPipelineBlocks.from_blocks_dict(
        {"text_encoder": ModularPipelineBlocks(), "generate": ModularPipelineBlocks()}
    )
    with pytest.raises(LoadError, match="text_encoder, generate do not split into encoder, denoise and decode"):
        split_workflows(fused, frozenset())
    video = diffusers.LTX2AutoBlocks()
    with pytest.raises(
        LoadError, match=r"LTX2AutoBlocks has no workflow from a prompt \(and pictures\).*makes audio beside"
    ):
        split_workflows(video, frozenset(video.component_names))
    with pytest.raises(LoadError, match="no denoising loop"):
        quiet_loops(fused)


def test_a_model_with_a_component_missing_is_refused(copied_model: Path) -> None:
    path = copied_model / "model_index.json"
    content = json.loads(path.read_text())
    del content["vae"]
    path.write_text(json.dumps(content))
    with pytest.raises(LoadError, match="has no workflow from a prompt"):
        DiffusersEngine(str(copied_model))


def test_code_of_a_repository_is_never_run(copied_model: Path, tmp_path: Path) -> None:
    """Trap 9."""
    marker = tmp_path / "ran"
    (copied_model / "block.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: ...\n")
    auto_map = {"ModularPipelineBlocks": "block.Evil"}
    (copied_model / "modular_config.json").write_text(json.dumps({"_class_name": "Evil", "auto_map": auto_map}))
    with pytest.raises(LoadError, match="trust_remote_code"):
        DiffusersEngine(str(copied_model))
    assert not marker.exists()


def test_blocks_that_name_no_workflow_have_the_one_that_their_inputs_allow() -> None:
    blocks = QwenImageEditPlusAutoBlocks()
    every = frozenset(spec.name for spec in blocks.expected_components)
    assert list(split_workflows(blocks, every)) == ["image_conditioned"]


def test_a_patch_may_have_a_side_for_each_axis() -> None:
    vae = {"block_out_channels": [8, 8, 8, 8]}
    geometry = Geometry.read("any", {"patch_size": [1, 2, 2]}, vae, processor_factor=8)
    assert (geometry.token_pixels, geometry.size_multiple) == (16, 16)

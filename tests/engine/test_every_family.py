"""Every modular pipeline of diffusers: equal to the whole pipeline to the bit, or refused for a reason.

docs/models.md has the table of them, made by ``tests/engine/table.py``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import diffusers.modular_pipelines.helios.encoders as helios_encoders
import diffusers.modular_pipelines.wan.encoders as wan_encoders
import pytest
from diffusers import ModularPipeline
from PIL import Image

from stage_server.engine import pictures
from stage_server.engine.base import LoadError
from stage_server.engine.checkpoint import Checkpoint
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.requirements import missing_packages
from stage_server.engine.tested import TESTED_FAMILIES
from tests.engine import table
from tests.engine.both_ways import whole
from tests.engine.families import FAMILIES, model_class
from wire.types import Role

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
SERVICES, NIGHTLY = pytest.mark.services, pytest.mark.nightly
Engines = Callable[[str], Mapping[Role, DiffusersEngine]]

CASES = [
    ("anima", "image2image", 0),
    ("ernie-image", "text2image", 0),
    ("flux-3", "image_conditioned", 0),
    ("ideogram-4", "text2image", 0),
    ("krea-2-turbo", "text2image", 0),
    ("qwen-image-2.1", "text2image", 0),
    ("wan", "text2video", 0),
    pytest.param("ltx", "image2video", 0, marks=SERVICES),
    pytest.param("wan-2.2-i2v", "image2video", 0, marks=SERVICES),
    pytest.param("hunyuan-video-1.5-i2v", "image2video", 0, marks=SERVICES),
    pytest.param("helios", "image2video", 0, marks=SERVICES),
    pytest.param("anima", "text2image", 1, marks=SERVICES),
    pytest.param("ernie-image", "text2image", 1, marks=SERVICES),
    pytest.param("flux-3", "text2image", 1, marks=SERVICES),
    pytest.param("flux-3-distilled", "image_conditioned", 0, marks=SERVICES),
    pytest.param("ideogram-4", "text2image", 1, marks=SERVICES),
    pytest.param("qwen-image-2.1", "image_conditioned", 0, marks=SERVICES),
    pytest.param("qwen-image-2.1-turbo", "text2image", 0, marks=SERVICES),
]
"""Family, task, and which of ``table.options``: guided first."""


@pytest.fixture(autouse=True)
def ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wan and Helios call it, and it leaves plain text as it is."""
    for module in (wan_encoders, helios_encoders):
        if not hasattr(module, "ftfy"):
            monkeypatch.setattr(module, "ftfy", SimpleNamespace(fix_text=lambda text: text), raising=False)


@pytest.fixture(scope="module")
def monolith(model_folder: Callable[[str], str]) -> Callable[[str], ModularPipeline]:
    return cache(lambda family: whole(model_folder(family)))


@pytest.mark.parametrize(("family", "task", "option"), CASES)
def test_split_equals_whole(
    family: str, task: str, option: int, split_engines: Engines, monolith: Callable[[str], ModularPipeline]
) -> None:
    engines = split_engines(family)
    workflow = engines[Role.DIT].describe().workflow(task)
    assert workflow is not None
    assert table.is_equal(engines, monolith(family), workflow, table.options(workflow)[option])


def test_the_table_has_every_modular_pipeline_that_there_is() -> None:
    assert list(table.written(DOCUMENT)) == table.modular_classes(), (
        "write it anew: python -m tests.engine.table --write"
    )


def test_every_task_that_the_split_accepts_or_refuses_is_in_the_table() -> None:
    for pipeline, line in table.written(DOCUMENT).items():
        accepted, refused = table.declared(pipeline)
        grouped = dict[str, list[str]]()
        for task, reason in refused.items():
            grouped.setdefault(reason, []).append(task)
        for reason, tasks in grouped.items():
            assert f"{table.listed(tasks)}: {reason}" in line, pipeline
        missing = [task for task in accepted if task not in line]
        assert not missing, f"{pipeline} has {missing}, of which the table says nothing"


def test_every_picture_family_is_proved_or_refused_with_a_reason() -> None:
    proved = {model_class(family) for family in FAMILIES}
    for pipeline in table.modular_classes():
        accepted, _ = table.declared(pipeline)
        of_pictures = [task for task, split in accepted.items() if not split.makes_video]
        assert not of_pictures or pipeline in proved, f"{pipeline} is accepted, and nobody tried it"


def test_families_that_pass_for_tested_have_a_tiny_model() -> None:
    names = {getattr(diffusers, model_class(family))().blocks.model_name for family in FAMILIES}
    assert names >= TESTED_FAMILIES


@NIGHTLY
def test_the_table_is_what_trying_gives() -> None:
    tried = {row.pipeline: str(row) for row in table.rows()}
    assert tried == table.written(DOCUMENT)


def test_a_repository_of_an_old_pipeline_alone_is_refused_with_those_that_can_be_served(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(LoadError, match=r"StableDiffusionPipeline.*no modular pipeline.*Flux2Klein, .*ZImage"):
        Checkpoint.find(str(tmp_path), None, local_files_only=True).open_pipeline()


def test_an_old_index_is_opened_by_the_name_of_its_class_where_diffusers_knows_no_more(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "ErnieImagePipeline"}))
    opened = Checkpoint.find(str(tmp_path), None, local_files_only=True).open_pipeline()
    assert type(opened).__name__ == "ErnieImageModularPipeline"


def test_a_stack_of_layers_is_refused_with_its_reason(model_folder: Callable[[str], str]) -> None:
    with pytest.raises(LoadError, match="a stack of layers"):
        DiffusersEngine(model_folder("qwen-image-layered"))


def test_a_package_that_blocks_call_is_missed_when_the_role_is_loaded(
    model_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(wan_encoders, "ftfy", raising=False)
    engine = DiffusersEngine(model_folder("wan"))
    with pytest.raises(LoadError, match=r"the role encoder here: WanTextEncoderStep calls ftfy.*pip install ftfy"):
        engine.set_roles(frozenset({Role.ENCODER}))
    engine.set_roles(frozenset({Role.DIT}))  # which has no need of it


def test_what_is_imported_and_not_called_is_not_missed() -> None:
    """FLUX.2's blocks go without torch_xla, FLUX.1's never come to ftfy; neither is installed with ``.[stage]``."""
    for pipeline in ("Flux2ModularPipeline", "FluxModularPipeline", "ZImageModularPipeline"):
        assert not missing_packages([getattr(diffusers, pipeline)().blocks])


def test_a_picture_with_transparency_becomes_a_jpeg_on_white() -> None:
    clear: Any = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    decoded = Image.open(io.BytesIO(pictures.encode(clear, "jpeg", 90)))
    assert decoded.convert("RGB").getpixel((4, 4)) == (255, 255, 255)

"""What becomes of each modular pipeline of diffusers here: the table in docs/models.md, made by trying it.

``python -m tests.engine.table`` prints it; ``--write docs/models.md`` puts it there. Takes minutes.
"""

from __future__ import annotations

import argparse
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tests.torchvision

tests.torchvision.make_importable()  # before anything imports transformers

import diffusers  # noqa: E402
import diffusers.modular_pipelines.helios.encoders as helios_encoders  # noqa: E402
import diffusers.modular_pipelines.wan.encoders as wan_encoders  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from stage_server.engine.base import LoadError  # noqa: E402
from stage_server.engine.controls import component  # noqa: E402
from stage_server.engine.diffusers_engine import DiffusersEngine  # noqa: E402
from stage_server.engine.split import WorkflowSplit, sort_workflows  # noqa: E402
from tests.engine.both_ways import (  # noqa: E402
    PROMPT,
    as_png,
    content,
    made_by_split,
    made_by_whole,
    picture,
    split,
    whole,
)
from tests.engine.families import FAMILIES, build, model_class  # noqa: E402
from tests.engine.tiny.controls import UNION, build_steering, load_ip_adapter  # noqa: E402
from wire.params import ControlUse, ImageParams, IPAdapterUse, ModelInfo, Workflow  # noqa: E402
from wire.types import Role  # noqa: E402

BEGIN, END = "<!-- table of families: python -m tests.engine.table -->", "<!-- end of the table -->"
EQUAL, RUNS, REFUSED, UNTRIED = "bit-equal", "runs", "refused", "accepted, not tried"

IP_SCALE = 0.6

FRAMES = 9
"""Of a video: three of the latents of most families, two of others."""

_NAMED_AT_MOST = 9
"""Tasks with one reason."""


@dataclass
class Row:
    """One class."""

    pipeline: str
    verdicts: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Task → verdict and reason."""

    def __str__(self) -> str:
        grouped: dict[tuple[str, str], list[str]] = {}
        for task, verdict in self.verdicts.items():
            grouped.setdefault(verdict, []).append(task)
        cells = dict.fromkeys((EQUAL, RUNS, REFUSED), "")
        for (verdict, reason), tasks in grouped.items():
            cell = listed(tasks) + (f": {reason}" if reason else "")
            column = RUNS if verdict == UNTRIED else verdict
            cells[column] = "; ".join(filter(None, (cells[column], cell)))
        return f"| `{self.pipeline}` | {' | '.join(cells.values())} |"


def modular_classes() -> list[str]:
    """Every modular pipeline that this diffusers has."""
    names = (name for name in dir(diffusers) if name.endswith("ModularPipeline"))
    return sorted(name for name in names if getattr(getattr(diffusers, name), "default_blocks_name", None))


def options(workflow: Workflow) -> list[dict[str, Any]]:
    """Guided and not, where the workflow knows guidance."""
    if "guidance_scale" not in workflow.inputs:
        return [{}]
    negative = {"negative_prompt": "a blue star"} if "negative_prompt" in workflow.inputs else {}
    return [{"guidance_scale": 3.0, **negative}, {"guidance_scale": 1.0}]


def params(info: ModelInfo, workflow: Workflow, **guidance: Any) -> ImageParams:
    """Small, and in three steps."""
    width, height = (side + -side % info.size_multiple for side in (96, 64))
    asked: dict[str, Any] = {"strength": 0.7} if "strength" in workflow.inputs else {}
    if "num_frames" in workflow.inputs:
        asked["num_frames"] = FRAMES
    if "max_sequence_length" in workflow.inputs:
        asked["max_sequence_length"] = 64
    if "control_image" in workflow.inputs:
        is_union = "controlnet_union" in workflow.name
        asked["controls"] = (ControlUse(UNION, 0.8, mode=0) if is_union else ControlUse("canny", 0.8),)
    if "ip_adapter_image" in workflow.inputs:
        asked["ip_adapter"] = IPAdapterUse("style", IP_SCALE)
    return ImageParams(
        workflow=workflow.name,
        prompt=PROMPT,
        width=width,
        height=height,
        num_inference_steps=3,
        seed=11,
        **asked,
        **guidance,
    )


def is_equal(
    engines: Mapping[Role, DiffusersEngine], pipeline: Any, workflow: Workflow, guidance: Mapping[str, Any]
) -> bool:
    """Whether three engines draw what the whole pipeline draws. An engine's failure is raised."""
    asked = params(engines[Role.DIT].describe(), workflow, **guidance)
    images = uploads(workflow)
    for use in asked.controls:
        pipeline.update_components(controlnet=getattr(engines[Role.DIT]._pipeline, component(use.name)))
    ours = content(made_by_split(engines, asked, {name: as_png(image) for name, image in images.items()}))
    theirs = made_by_whole(pipeline, asked, images)
    if "mask_image" in images:
        theirs = Image.composite(theirs, images["image"], images["mask_image"])
    assert len(set(ours[1])) > 10, "a constant picture proves nothing"
    return ours == content(theirs)


def declared(pipeline: str) -> tuple[dict[str, WorkflowSplit], dict[str, str]]:
    """Tasks of a class that has every component that it knows: those that the split accepts, the others with the
    reason."""
    blocks = getattr(diffusers, pipeline)().blocks
    try:
        return sort_workflows(blocks, frozenset(spec.name for spec in blocks.expected_components))
    except LoadError as error:
        return {}, {"all": str(error)}


def rows(families: Sequence[str] = ()) -> Iterator[Row]:
    """One per class; ``families``: only their classes."""
    built: dict[str, list[str]] = {}
    for family in families or FAMILIES:
        built.setdefault(model_class(family), []).append(family)
    for pipeline in sorted(built) if families else modular_classes():
        accepted, refused = declared(pipeline)
        row = Row(pipeline)
        for family in built.get(pipeline, ()):
            _try(family, row)
        for task in accepted:
            row.verdicts.setdefault(task, (UNTRIED, "not tried: no tiny model"))
        for task, reason in refused.items():
            row.verdicts.setdefault(task, (REFUSED, reason))
        yield row


def _try(family: str, row: Row) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "steering").mkdir()
        build(family, Path(folder))
        sources = build_steering(family, Path(folder) / "steering")
        try:
            engines = split(folder, sources)
        except LoadError as error:
            cause = str(error).replace(Path(folder).name, family).partition(". ")[0]
            row.verdicts.update(dict.fromkeys(declared(row.pipeline)[0], (REFUSED, cause)))
            return
        pipeline = adapted = whole(folder)
        if sources.ip_adapters:
            adapted = whole(folder)
            load_ip_adapter(adapted, sources, "style", IP_SCALE)
        known, _ = declared(row.pipeline)
        for workflow in engines[Role.DIT].describe().workflows:
            if workflow.name not in known:
                row.verdicts[workflow.name] = (RUNS, "made here of image2image")
                continue
            held = adapted if "ip_adapter" in workflow.name else pipeline
            row.verdicts.setdefault(workflow.name, _verdict(engines, held, workflow))


def _fails_whole(pipeline: Any, asked: ImageParams, workflow: Workflow) -> bool:
    try:
        made_by_whole(pipeline, asked, uploads(workflow))
    except Exception:  # whatever diffusers raises
        return True
    return False


def uploads(workflow: Workflow) -> dict[str, Any]:
    return {name: picture("L" if "mask" in name else "RGB") for name in workflow.inputs if "image" in name}


def _verdict(engines: Mapping[Role, DiffusersEngine], pipeline: Any, workflow: Workflow) -> tuple[str, str]:
    for number, guidance in enumerate(options(workflow)):
        try:
            if not is_equal(engines, pipeline, workflow, guidance):
                return RUNS, "differs from the pipeline" + (" without guidance" if number else "")
        except Exception:
            if not _fails_whole(pipeline, params(engines[Role.DIT].describe(), workflow, **guidance), workflow):
                raise
            if number:
                return EQUAL, "diffusers fails without guidance"
            return RUNS, "the whole pipeline fails at sizes but its own"
    return EQUAL, ""


def listed(tasks: Sequence[str]) -> str:
    if len(tasks) <= _NAMED_AT_MOST:
        return ", ".join(tasks)
    return f"{', '.join(tasks[:_NAMED_AT_MOST])} and {len(tasks) - _NAMED_AT_MOST} more"


def written(path: Path) -> dict[str, str]:
    """Class → its line, of the table in the document."""
    text = path.read_text().split(BEGIN)[1].split(END)[0]
    return {found[1]: line for line in text.splitlines() if (found := re.match(r"\| `(\w+)` ", line))}


def write(path: Path, lines: Mapping[str, str]) -> None:
    before, rest = path.read_text().split(BEGIN)
    head = "| modular pipeline | bit-equal | runs | refused |\n|---|---|---|---|\n"
    table = "\n".join(lines[pipeline] for pipeline in sorted(lines))
    path.write_text(f"{before}{BEGIN}\n{head}{table}\n{END}{rest.split(END)[1]}")


def stand_in_for_ftfy() -> None:
    """Wan and Helios call it to mend texts, and it leaves plain ones as they are. It is not installed with
    ``.[stage]``."""
    for module in (wan_encoders, helios_encoders):
        if not hasattr(module, "ftfy"):
            module.ftfy = SimpleNamespace(fix_text=lambda text: text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.engine.table", description=__doc__)
    parser.add_argument("family", nargs="*", choices=[*FAMILIES, []], help="only the classes of these; all without")
    parser.add_argument("--write", type=Path, help="the document whose table is written anew, as far as it was tried")
    asked = parser.parse_args()
    stand_in_for_ftfy()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    lines = dict[str, str]()
    for row in rows(asked.family):
        print(row, flush=True)
        lines[row.pipeline] = str(row)
    if asked.write is not None:
        known = written(asked.write) if asked.family else {}
        write(asked.write, known | lines)


if __name__ == "__main__":
    main()

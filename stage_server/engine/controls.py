"""The ControlNets that a server's operator allows: components of the dit, all of them, and one name for each.

diffusers' blocks know one component, ``controlnet``. The pipeline of a job has there what the job asks for; what the
engine loads and counts are components of their own. They are part of the model's key: all its servers have the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from diffusers import ControlNetModel, QwenImageMultiControlNetModel
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec
from huggingface_hub import resolve_revision
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionResolutionError

from stage_server.engine.base import BadJob, LoadError
from stage_server.engine.checkpoint import ComponentFiles
from stage_server.engine.control_source import place_of
from stage_server.engine.pictures import control_index, is_control, open_upload
from stage_server.engine.split import CONTROLNET, WorkflowSplit, walk
from stage_server.engine.stubs import ComponentStub
from wire.controls import fault
from wire.params import Control, ControlUse, ModelInfo

_PREFIX = f"{CONTROLNET}:"


@dataclass(frozen=True, slots=True)
class Controls:
    """Those of one model."""

    kinds: Mapping[str, type]
    """Name → class."""
    modes: Mapping[str, int]
    """Of those that know several kinds of pictures, how many."""

    @property
    def components(self) -> frozenset[str]:
        return frozenset(map(component, self.kinds))

    @property
    def available(self) -> frozenset[str]:
        """What blocks call them."""
        return frozenset({CONTROLNET} if self.kinds else ())

    def usable(self, workflows: Mapping[str, WorkflowSplit]) -> dict[str, WorkflowSplit]:
        """Without the workflows for which there is none."""
        has = {is_union: any((name in self.modes) is is_union for name in self.kinds) for is_union in (False, True)}
        return {name: split for name, split in workflows.items() if not split.controlled or has[split.takes_modes]}

    def offered(self, nbytes: Callable[[str], int], denoiser: int) -> tuple[Control, ...]:
        """``nbytes``: component → bytes of its weights; ``denoiser``: those of the denoiser."""
        share = {name: nbytes(component(name)) / denoiser if denoiser else 0.0 for name in self.kinds}
        return tuple(
            Control(name, min(share[name], 1.0), self.modes.get(name, 0), alone=kind is not ControlNetModel)
            for name, kind in self.kinds.items()
        )


def component(name: str) -> str:
    return f"{_PREFIX}{name}"


def declare(
    pipeline: Any, blocks: ModularPipelineBlocks, sources: Mapping[str, str], *, local_files_only: bool
) -> Controls:
    """The pipeline has a component more for each of ``sources``: name → folder or hub id. Raises ``LoadError``."""
    known = {spec.type_hint for block in walk(blocks) for spec in block.expected_components if spec.name == CONTROLNET}
    kinds, modes = dict[str, type](), dict[str, int]()
    for name, source in sorted(sources.items()):
        if not known:
            raise LoadError(f"control {name}: no workflow of {type(blocks).__name__} takes a ControlNet")
        files = files_of(name, source, local_files_only)
        config = files.config()
        kind: Any = getattr(diffusers, str(config.get("_class_name")), None)
        if kind not in known:
            wanted = " or ".join(sorted(each.__name__ for each in known))
            raise LoadError(f"control {name} ({source}) is a {config.get('_class_name')}; this model takes {wanted}")
        kinds[name] = kind
        if "num_control_type" in config:
            modes[name] = int(config["num_control_type"])
        pipeline._component_specs[component(name)] = ComponentSpec(
            name=component(name),
            type_hint=kind,
            pretrained_model_name_or_path=files.repo,
            subfolder=files.subfolder,
            revision=files.revision,
        )
        pipeline.register_components(**{component(name): None})
    return Controls(kinds, modes)


def files_of(name: str, source: str, local_files_only: bool) -> ComponentFiles:
    """Of a folder or a repository; its class is not known yet. Raises ``LoadError``."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return ComponentFiles(ControlNetModel, str(folder), "", None, local_files_only)
    repo, revision, subfolder = place_of(name, source)
    try:
        commit = resolve_revision(repo, revision=revision, local_files_only=local_files_only).resolved
    except (HfHubHTTPError, RevisionResolutionError, HFValidationError, OSError) as error:
        raise LoadError(f"control {name} ({source}) not found on the hub: {error}") from error
    return ComponentFiles(ControlNetModel, repo, subfolder, commit, local_files_only)


def check(uses: Sequence[ControlUse], images: Iterable[str], info: ModelInfo) -> None:
    """``images``: the names of uploads. Raises ``BadJob`` for what this model cannot do."""
    if found := fault(uses, info):
        raise BadJob(found[2])
    if (sent := sum(map(is_control, images))) and sent != len(uses):
        raise BadJob(f"{len(uses)} ControlNets need as many pictures, not {sent}")


def inputs(uses: Sequence[ControlUse], images: Mapping[str, bytes]) -> dict[str, Any]:
    """What blocks read of them. Raises ``BadJob`` for a picture that cannot be read."""
    if not uses:
        return {}
    names = sorted(filter(is_control, images), key=control_index)
    sent = [open_upload(name, images[name]) for name in names]
    values: dict[str, Any] = {
        "control_image": sent,
        "controlnet_conditioning_scale": [use.scale for use in uses],
        "control_guidance_start": [use.start for use in uses],
        "control_guidance_end": [use.end for use in uses],
    }
    if uses[0].mode is not None:  # one network for all pictures
        return {name: value[0] if name != "control_image" and value else value for name, value in values.items()} | {
            "control_mode": [use.mode for use in uses]
        }
    return values if len(uses) > 1 else {name: value[0] for name, value in values.items() if value}


def place(view: Any, uses: Sequence[ControlUse]) -> None:
    """The ``controlnet`` of a job's view. Where none is loaded it is one without weights, for blocks that ask what it
    is."""
    if not uses:
        return
    nets = [_known(getattr(view, component(use.name))) for use in uses]
    if len(uses) == 1 or uses[0].mode is not None:
        view.controlnet = nets[0]
    elif isinstance(nets[0], ControlNetModel):
        view.controlnet = MultiControlNetModel(nets)  # one for each picture, also where one of them reads several
    else:
        view.controlnet = QwenImageMultiControlNetModel(nets[:1])


def _known(net: Any) -> Any:
    return net.without_weights if isinstance(net, ComponentStub) else net

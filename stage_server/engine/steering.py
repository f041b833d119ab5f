"""What pictures steer a model by: the ControlNets and IP-Adapters that its operator names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec
from transformers import CLIPVisionModelWithProjection

from stage_server.engine.base import LoadError
from stage_server.engine.checkpoint import Checkpoint
from stage_server.engine.control_source import SteeringSources
from stage_server.engine.controls import Controls, declare, files_of
from stage_server.engine.ip_adapters import WORKFLOW_INPUT, IPAdapters
from stage_server.engine.load_options import LoadOptions
from stage_server.engine.split import WorkflowSplit, walk
from stage_server.offload import Offload
from stage_server.weight_formats import WeightFormat

IMAGE_ENCODER = "image_encoder"
"""The component that reads the pictures of IP-Adapters, as blocks call it."""

PROCESSOR = "feature_extractor"
"""What makes these pictures ready for it."""


@dataclass(frozen=True, slots=True)
class Steering:
    """Of one model."""

    controls: Controls
    ip_adapters: IPAdapters

    @classmethod
    def of(
        cls,
        pipeline: Any,
        blocks: ModularPipelineBlocks,
        sources: SteeringSources,
        options: LoadOptions,
        checkpoint: Checkpoint,
    ) -> Steering:
        """The pipeline has the components that it takes. Raises ``LoadError``."""
        controls = declare(pipeline, blocks, sources.controls, local_files_only=checkpoint.local_files_only)
        if sources.ip_adapters:
            _declare_encoder(pipeline, blocks, sources, checkpoint.local_files_only)
            formats = {**checkpoint.formats(), **options.formats}
            offloads = {**checkpoint.offloads(), **options.offloads}
            is_quantised = formats.get("unet", WeightFormat.NONE) is not WeightFormat.NONE
            is_offloaded = offloads.get("unet", Offload.NONE) is not Offload.NONE
            if options.compiler is not None or is_quantised or is_offloaded:
                raise LoadError("IP-Adapters need a denoiser that is neither compiled nor quantised nor offloaded")
        return cls(controls, IPAdapters(sources.ip_adapters))

    def usable(self, workflows: Mapping[str, WorkflowSplit]) -> dict[str, WorkflowSplit]:
        """Without the workflows for which there is nothing."""
        found = self.controls.usable(workflows)
        return {name: split for name, split in found.items() if self.ip_adapters.names or not split.adapted}


def _declare_encoder(
    pipeline: Any, blocks: ModularPipelineBlocks, sources: SteeringSources, local_files_only: bool
) -> None:
    if not any(param.name == WORKFLOW_INPUT for block in walk(blocks) for param in block.inputs):
        raise LoadError(f"no workflow of {type(blocks).__name__} takes an IP-Adapter")
    known = pipeline._component_specs.get(IMAGE_ENCODER)
    if sources.image_encoder:
        files = files_of(IMAGE_ENCODER, sources.image_encoder, local_files_only)
        pipeline._component_specs[IMAGE_ENCODER] = ComponentSpec(
            name=IMAGE_ENCODER,
            type_hint=CLIPVisionModelWithProjection,
            pretrained_model_name_or_path=files.repo,
            subfolder=files.subfolder,
            revision=files.revision,
        )
    elif known is None or known.type_hint is None:
        raise LoadError(
            "IP-Adapters need a model that reads their pictures, and this one has none: add --image-encoder, for "
            "example h94/IP-Adapter:models/image_encoder"
        )
    _declare_processor(pipeline, blocks)


def _declare_processor(pipeline: Any, blocks: ModularPipelineBlocks) -> None:
    """Indices of the old kind say that there is none; then it is the one that the blocks would make."""
    known = pipeline._component_specs.get(PROCESSOR)
    if known is None or known.type_hint is not None:
        return
    expected = (spec for block in walk(blocks) for spec in block.expected_components if spec.name == PROCESSOR)
    spec = next(expected)
    pipeline._component_specs[PROCESSOR] = spec
    setattr(pipeline, PROCESSOR, spec.create())

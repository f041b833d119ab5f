"""Splits modular blocks into roles, and reads off the blocks what crosses between them. Knows no weights.

``denoise`` is the dit; what comes before it is the encoder, what comes after it the decoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks

from stage_server.engine.base import LoadError
from wire.params import Workflow
from wire.references import References
from wire.types import Role

GENERATOR = "generator"
"""A hidden edge: reading it advances it, so its state is an output of every block that reads it."""

FOREIGN: Mapping[Role, frozenset[str]] = {
    Role.ENCODER: frozenset({"transformer", "unet"}),
    Role.DIT: frozenset({"vae"}),
    Role.DECODER: frozenset({"transformer", "unet"}),
}
"""Components whose configuration some blocks of the role read, and whose weights belong to other roles."""

_TRIGGERS = {"prompt", "image", "mask_image"}
_PUBLIC_NAMES = {"image_conditioned_inpainting": "inpainting"}
"""Workflows that other families call otherwise."""
_PARAMS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "height": "height",
    "width": "width",
    "num_inference_steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "generator": "seed",
    "strength": "strength",
    "max_sequence_length": "max_sequence_length",
    "image": "image",
    "mask_image": "mask_image",
}
"""Block input → the field of ``ImageParams``, or the image, that feeds it."""


@dataclass(frozen=True, slots=True)
class Part:
    """The blocks of one role in one workflow."""

    role: Role
    blocks: SequentialPipelineBlocks
    inputs: tuple[Any, ...] = ()
    """diffusers ``InputParam``s."""
    outputs: Mapping[str, Any] = field(default_factory=dict)
    """Name → diffusers ``OutputParam``, of every leaf block; ``generator`` where the part reads it."""

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(param.name for param in self.inputs if param.name)

    def reads_output(self, output: Any) -> bool:
        """Whether the part reads another part's output, by name or by kind."""
        kinds = {param.kwargs_type for param in self.inputs if not param.name}
        return output.name in self.reads or (output.kwargs_type is not None and output.kwargs_type in kinds)

    def default(self, name: str) -> Any:
        """The blocks' own value for an input that nobody gives; None without one."""
        return next((param.default for param in self.inputs if param.name == name), None)

    @property
    def components(self) -> frozenset[str]:
        """Names of the components that the role must load."""
        return frozenset(spec.name for spec in self.blocks.expected_components) - FOREIGN[self.role]


@dataclass(frozen=True, slots=True)
class WorkflowSplit:
    """One task of the model, split into its three parts."""

    name: str
    parts: Mapping[Role, Part]

    def crossing(self, source: Role, target: Role) -> tuple[Any, ...]:
        """``OutputParam``s of ``source`` that ``target`` reads and no role in between makes anew."""
        roles = list(Role)
        between = roles[roles.index(source) + 1 : roles.index(target)]
        remade = {name for role in between for name in self.parts[role].outputs}
        reader = self.parts[target]
        made = self.parts[source].outputs.values()
        return tuple(output for output in made if output.name not in remade and reader.reads_output(output))

    @property
    def edges(self) -> tuple[tuple[Role, Role], ...]:
        roles = list(Role)
        pairs = [(a, b) for i, a in enumerate(roles) for b in roles[i + 1 :]]
        return tuple(pair for pair in pairs if self.crossing(*pair))

    def describe(self, ignored: frozenset[str], max_images: int, references: References | None) -> Workflow:
        """The workflow for the gateway, without the inputs that this model reads and ignores."""
        read = {name for part in self.parts.values() for name in part.reads}
        if any("guider" in part.components for part in self.parts.values()):
            read.add("guidance_scale")
        inputs = tuple(public for name, public in _PARAMS.items() if name in read - ignored)
        return Workflow(self.name, inputs, self.edges, max_images, references, self._encoder_inputs(ignored))

    def _encoder_inputs(self, ignored: frozenset[str]) -> tuple[str, ...]:
        part = self.parts[Role.ENCODER]
        read = set(part.reads)
        if "max_area" in read:  # which follows from the size
            read |= {"height", "width"}
        return tuple(public for name, public in _PARAMS.items() if name in read - ignored)

    @property
    def masked(self) -> bool:
        return "mask_image" in self.parts[Role.ENCODER].reads

    @property
    def guider_chooses_negative(self) -> bool:
        """Whether the text encoder asks the guider about a negative prompt (Stable Diffusion 3's does not)."""
        return "guider" in self.parts[Role.ENCODER].components


@dataclass(frozen=True, slots=True)
class _HiddenOutput:
    """Stands for an ``OutputParam`` that the blocks do not declare."""

    name: str
    kwargs_type: str | None = None
    type_hint: Any = None


def split_workflows(blocks: ModularPipelineBlocks, available: frozenset[str]) -> dict[str, WorkflowSplit]:
    """Every workflow that prompts and uploaded images can start, and whose components the model has.

    Raises ``LoadError`` when the blocks do not group into encoder, dit and decoder.
    """
    groups = _group(list(blocks.sub_blocks))
    found = {}
    for name, triggers in _workflow_map(blocks).items():
        if isinstance(triggers, dict) and set(triggers) <= _TRIGGERS and "prompt" in triggers:
            split = WorkflowSplit(name, _parts(blocks.get_execution_blocks(**triggers), groups))
            has_components = all(part.components <= available for part in split.parts.values())
            if has_components and "images" in split.parts[Role.DECODER].outputs:
                found[name] = split
    if not found:
        raise LoadError(
            f"{type(blocks).__name__} has no workflow from a prompt (and pictures) to a picture with these components"
        )
    return found


def _workflow_map(blocks: ModularPipelineBlocks) -> Mapping[str, Any]:
    """Workflow → what starts it. Blocks that do not say so have one, with a picture if they read any."""
    declared: Mapping[str, Any] | None = getattr(blocks, "_workflow_map", None)
    if declared is not None:
        return {_PUBLIC_NAMES.get(name, name): triggers for name, triggers in declared.items()}
    if any(param.name == "image" for param in blocks.inputs):
        return {"image_conditioned": {"prompt": True, "image": True}}
    return {"text2image": {"prompt": True}}


def _group(names: list[str]) -> dict[str, Role]:
    """Top-level block name → role."""
    if names.count("denoise") != 1 or names[0] == "denoise" or names[-1] == "denoise":
        raise LoadError(f"the blocks {', '.join(names)} do not split into encoder, denoise and decode")
    at = names.index("denoise")
    return {name: Role.ENCODER if i < at else Role.DIT if i == at else Role.DECODER for i, name in enumerate(names)}


def _parts(workflow: SequentialPipelineBlocks, groups: Mapping[str, Role]) -> dict[Role, Part]:
    """``get_workflow`` flattens names (``denoise.input``): group by what precedes the first dot."""
    chosen: dict[Role, dict[str, ModularPipelineBlocks]] = {role: {} for role in Role}
    for name, block in workflow.sub_blocks.items():
        chosen[groups[name.partition(".")[0]]][name] = block
    empty = [role for role, blocks in chosen.items() if not blocks]
    if empty:
        raise LoadError(f"no blocks for {', '.join(empty)} among {', '.join(workflow.sub_blocks)}")
    return {role: make_part(role, SequentialPipelineBlocks.from_blocks_dict(blocks)) for role, blocks in chosen.items()}


def make_part(role: Role, blocks: SequentialPipelineBlocks) -> Part:
    """With what the blocks say that they read and make."""
    inputs = tuple(blocks.inputs)
    outputs: dict[str, Any] = {
        out.name: out for block in blocks.sub_blocks.values() for out in block.intermediate_outputs
    }
    if any(param.name == GENERATOR for param in inputs):
        outputs[GENERATOR] = _HiddenOutput(GENERATOR)
    return Part(role, blocks, inputs, outputs)


def walk(blocks: ModularPipelineBlocks) -> Iterable[ModularPipelineBlocks]:
    """Every block of the tree, parents first."""
    yield blocks
    for block in blocks.sub_blocks.values():
        yield from walk(block)

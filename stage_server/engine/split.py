"""Splits modular blocks into roles, and reads off the blocks what crosses between them. Knows no weights.

``denoise`` is the dit; what comes before it is the encoder, what comes after it the decoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks

from stage_server.engine.base import LoadError
from wire.params import Workflow
from wire.references import References
from wire.types import REQUIRED, Role

GENERATOR = "generator"
"""A hidden edge: reading it advances it, so its state is an output of every block that reads it."""

DENOISERS = ("transformer", "transformer_2", "transformer_ref", "unconditional_transformer", "unet")
"""Components that steps call; the first that a model has is the one whose configuration tells sizes."""

CONTROLNET = "controlnet"
"""The component, as blocks call it; see ``controls``."""

FOREIGN: Mapping[Role, frozenset[str]] = {
    Role.ENCODER: frozenset({*DENOISERS, CONTROLNET}),
    Role.DIT: frozenset({"vae"}),
    Role.DECODER: frozenset(DENOISERS),
}
"""Components whose configuration some blocks of the role read, and whose weights belong to other roles."""

_TRIGGERS = {"prompt", "image", "mask_image", "control_image", "control_mode", "ip_adapter_image"}
_PUBLIC_NAMES = {"image_conditioned_inpainting": "inpainting", "img2img": "image2image"}
"""Workflows that other families call otherwise."""
_PARAMS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "height": "height",
    "width": "width",
    "num_inference_steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "guidance_schedule": "guidance_scale",
    "generator": "seed",
    "strength": "strength",
    "max_sequence_length": "max_sequence_length",
    "num_frames": "num_frames",
    "image": "image",
    "mask_image": "mask_image",
    "control_image": "control_image",
    "ip_adapter_image": "ip_adapter_image",
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
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Inputs whose value makes it this task: one frame, say."""

    def crossing(self, source: Role, target: Role) -> tuple[Any, ...]:
        """``OutputParam``s of ``source`` that ``target`` reads and no role in between makes anew."""
        roles = REQUIRED
        between = roles[roles.index(source) + 1 : roles.index(target)]
        remade = {name for role in between for name in self.parts[role].outputs}
        reader = self.parts[target]
        made = self.parts[source].outputs.values()
        return tuple(output for output in made if output.name not in remade and reader.reads_output(output))

    @property
    def edges(self) -> tuple[tuple[Role, Role], ...]:
        roles = REQUIRED
        pairs = [(a, b) for i, a in enumerate(roles) for b in roles[i + 1 :]]
        return tuple(pair for pair in pairs if self.crossing(*pair))

    def describe(self, ignored: frozenset[str], max_images: int, references: References | None) -> Workflow:
        """The workflow for the gateway, without the inputs that this model reads and ignores."""
        read = {name for part in self.parts.values() for name in part.reads}
        if any("guider" in part.components for part in self.parts.values()):
            read.add("guidance_scale")
        inputs = _public(read - ignored)
        return Workflow(self.name, inputs, self.edges, max_images, references, self._encoder_inputs(ignored))

    def _encoder_inputs(self, ignored: frozenset[str]) -> tuple[str, ...]:
        part = self.parts[Role.ENCODER]
        read = set(part.reads)
        if "max_area" in read:  # which follows from the size
            read |= {"height", "width"}
        return _public(read - ignored)

    @property
    def makes_video(self) -> bool:
        """More than one picture: frames."""
        return "images" not in self.parts[Role.DECODER].outputs and self.constants.get("num_frames") != 1

    @property
    def masked(self) -> bool:
        return "mask_image" in self.parts[Role.ENCODER].reads

    @property
    def controlled(self) -> bool:
        """A ControlNet takes part."""
        return any("control_image" in part.reads for part in self.parts.values())

    @property
    def adapted(self) -> bool:
        """An IP-Adapter takes part."""
        return "ip_adapter_image" in self.parts[Role.ENCODER].reads

    @property
    def takes_modes(self) -> bool:
        """The ControlNet knows several kinds of pictures."""
        return "control_mode" in self.parts[Role.DIT].reads

    @property
    def guider_chooses_negative(self) -> bool:
        """Whether the text encoder asks the guider about a negative prompt (Stable Diffusion 3's does not)."""
        return "guider" in self.parts[Role.ENCODER].components


def _public(read: AbstractSet[str]) -> tuple[str, ...]:
    """Each once, in the order of ``_PARAMS``."""
    return tuple(dict.fromkeys(public for name, public in _PARAMS.items() if name in read))


@dataclass(frozen=True, slots=True)
class _HiddenOutput:
    """Stands for an ``OutputParam`` that the blocks do not declare."""

    name: str
    kwargs_type: str | None = None
    type_hint: Any = None


def split_workflows(blocks: ModularPipelineBlocks, available: frozenset[str]) -> dict[str, WorkflowSplit]:
    """Every workflow that prompts and uploaded images can start, and whose components the model has.

    Raises ``LoadError`` when there is none, or the blocks do not group into encoder, dit and decoder.
    """
    found, refused = sort_workflows(blocks, available)
    if not found:
        raise LoadError(
            f"{type(blocks).__name__} has no workflow from a prompt (and pictures) to a picture or a video with these "
            "components: " + "; ".join(f"{name}: {why}" for name, why in refused.items())
        )
    return found


def sort_workflows(
    blocks: ModularPipelineBlocks, available: frozenset[str]
) -> tuple[dict[str, WorkflowSplit], dict[str, str]]:
    """Those that can be served, and the others with the reason. Raises ``LoadError``."""
    groups = _group(list(blocks.sub_blocks))
    found, refused = dict[str, WorkflowSplit](), dict[str, str]()
    for name, declared in _workflow_map(blocks).items():
        triggers = declared if isinstance(declared, dict) else declared[0]  # the others say the same in other words
        constants = {key: value for key, value in triggers.items() if value is not True}
        strange = set(triggers) - _TRIGGERS - constants.keys()
        if strange:
            refused[name] = f"no parameter feeds {' and '.join(sorted(strange))}"
            continue
        chosen = _without_absent(blocks.get_execution_blocks(**triggers), available)
        split = WorkflowSplit(name, _parts(chosen, groups), constants)
        refusal = _refusal(split, available)
        if refusal:
            refused[name] = refusal
        else:
            found[name] = split
    return found, refused


def _refusal(split: WorkflowSplit, available: frozenset[str]) -> str:
    """Why the workflow cannot be served; empty if it can."""
    if "prompt" not in split.parts[Role.ENCODER].reads:
        return "it reads no prompt"
    missing = frozenset().union(*(part.components for part in split.parts.values())) - available
    if missing:
        return f"the model has no {' and no '.join(sorted(missing))}"
    made = split.parts[Role.DECODER].outputs
    if not made.keys() & {"images", "videos"}:
        return f"it makes {' and '.join(sorted(made.keys() - {GENERATOR}))}, neither pictures nor videos"
    unfed = sorted(made.keys() - {GENERATOR, "images", "videos", "latents", "sampling_rate", "action"})
    if unfed:
        return f"it makes {' and '.join(unfed)} beside the video"
    if any("layers" in part.reads for part in split.parts.values()):
        return "it makes a stack of layers, at a size of its own choice, not one picture"
    return ""


def _without_absent(workflow: SequentialPipelineBlocks, available: frozenset[str]) -> SequentialPipelineBlocks:
    """Without the blocks that only rewrite what they are given (the prompt), and need components that the model has
    not: diffusers says of them to take them out."""
    blocks = {
        name: block
        for name, block in workflow.sub_blocks.items()
        if {spec.name for spec in block.expected_components} <= available or not _only_rewrites(block)
    }
    return SequentialPipelineBlocks.from_blocks_dict(blocks)


def _only_rewrites(block: ModularPipelineBlocks) -> bool:
    made = {output.name for output in block.intermediate_outputs}
    return "prompt" in made and made <= {param.name for param in block.inputs}


def _workflow_map(blocks: ModularPipelineBlocks) -> Mapping[str, Any]:
    """Workflow → what starts it. Blocks that do not say so have one, with a picture if they read any."""
    declared: Mapping[str, Any] | None = getattr(blocks, "_workflow_map", None)
    if declared is not None:
        return {_PUBLIC_NAMES.get(name, name): triggers for name, triggers in declared.items()}
    inputs = {param.name for param in blocks.inputs if param.name}
    if any(output.name == "videos" for output in blocks.outputs):
        strange = {"driving_video", "video", "references", "lyrics"} & inputs
        if "image" in inputs:
            return {"image2video": dict.fromkeys(("prompt", "image", *sorted(strange)), True)}
        return {"text2video": dict.fromkeys(("prompt", *sorted(strange)), True)}
    if "image" in inputs:
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
    chosen: dict[Role, dict[str, ModularPipelineBlocks]] = {role: {} for role in REQUIRED}
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

"""What a block changes without saying so reaches whoever reads it, through roles that do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam

from stage_server.engine.base import Outputs, Unwatched
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.port import ForwardPort
from stage_server.engine.split import WorkflowSplit, make_part
from stage_server.engine.stage_run import run_stage, stage_state
from stage_server.engine.stage_task import StageTask
from stage_server.engine.staging import HostStaging
from tests.engine.conftest import over_the_wire
from wire.params import ImageParams
from wire.types import REQUIRED, Role
from wire.values import Value

Engines = Mapping[Role, DiffusersEngine]


class Rewrites(ModularPipelineBlocks):  # type: ignore[misc]  # diffusers publishes no types
    """As FLUX.1 Kontext's encoder and Wan's do: the size becomes another. And the format, which only decoders read."""

    @property
    def inputs(self) -> list[Any]:
        return [InputParam(name) for name in ("height", "width", "output_type", "vae_dtype")]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block_state = self.get_block_state(state)
        block_state.height += 32
        block_state.output_type = "ptx"[:2]
        block_state.vae_dtype = torch.bfloat16
        self.set_block_state(state, block_state)
        return components, state


def rewriting(split: WorkflowSplit, block: ModularPipelineBlocks) -> WorkflowSplit:
    encoder = split.parts[Role.ENCODER]
    blocks = SequentialPipelineBlocks.from_blocks_dict({**encoder.blocks.sub_blocks, "rewrites": block})
    return WorkflowSplit(split.name, {**split.parts, Role.ENCODER: make_part(Role.ENCODER, blocks)})


def reading(split: WorkflowSplit, role: Role, name: str) -> WorkflowSplit:
    part = split.parts[role]
    more = dataclasses.replace(part, inputs=(*part.inputs, InputParam(name)))
    return WorkflowSplit(split.name, {**split.parts, role: more})


def run(engines: Engines, split: WorkflowSplit, params: ImageParams) -> tuple[dict[Role, Outputs], bytes]:
    """What each role sent, and the picture."""
    inbox: dict[str, dict[str, Value]] = {role: {} for role in REQUIRED} | {"image": {}}
    sent: dict[Role, Outputs] = {}
    for role in REQUIRED:
        task = StageTask(role, split, params, {}, inbox[role])
        with ForwardPort().open(Unwatched()) as calls:
            here, pipeline = HostStaging(), engines[role]._pipeline
            finish = run_stage(pipeline, task, stage_state(task, here), here, calls, Unwatched(), "float32")
        sent[role] = finish()
        for port, values in sent[role].items():
            inbox[port] |= {name: over_the_wire(value) for name, value in values.items()}
    picture = inbox["image"]["image"]
    assert isinstance(picture, bytes)
    return sent, picture


@pytest.fixture
def flux(split_engines: Callable[[str], Engines]) -> Engines:
    return split_engines("flux")


def asked(height: int) -> ImageParams:
    return ImageParams(prompt="a star", width=64, height=height, num_inference_steps=2, guidance_scale=3.0, seed=3)


def test_a_size_that_the_encoder_rewrites_is_the_size_that_is_drawn(flux: Engines) -> None:
    plain = flux[Role.DIT]._workflows["text2image"]
    _, expected = run(flux, plain, asked(96))

    sent, picture = run(flux, rewriting(plain, Rewrites()), asked(64))

    assert picture == expected
    assert sent[Role.ENCODER]["dit"]["height"] == 96
    assert sent[Role.DIT]["decoder"]["height"] == 96
    assert "width" not in sent[Role.ENCODER]["dit"]  # nobody changed it
    assert "output_type" not in sent[Role.ENCODER]["dit"]  # equal, if not the same object


def test_the_dit_passes_on_what_only_the_decoder_reads(flux: Engines) -> None:
    split = reading(rewriting(flux[Role.DIT]._workflows["text2image"], Rewrites()), Role.DECODER, "vae_dtype")
    assert "vae_dtype" not in split.parts[Role.DIT].reads

    sent, _ = run(flux, split, asked(64))

    assert (
        sent[Role.ENCODER]["dit"]["vae_dtype"] == sent[Role.DIT]["decoder"]["vae_dtype"] == {"torch dtype": "bfloat16"}
    )


def test_families_send_nothing_that_they_did_not_before(flux: Engines) -> None:
    sent, _ = run(flux, flux[Role.DIT]._workflows["text2image"], asked(64))
    assert set(sent[Role.ENCODER]["dit"]) == {"prompt_embeds", "pooled_prompt_embeds"}
    assert set(sent[Role.DIT]["decoder"]) == {"latents"}

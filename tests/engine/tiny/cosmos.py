"""A tiny Cosmos 3, whose transformer reads the prompt itself."""

from __future__ import annotations

import diffusers

from tests.engine.tiny.parts import VOCABULARY, WIDTH, flow, qwen_tokenizer
from tests.engine.tiny.pictures import Model
from tests.engine.tiny.videos import wan


def cosmos_3(distilled: bool) -> Model:
    _, components, _ = wan("WanPipeline")
    transformer = diffusers.Cosmos3OmniTransformer(
        head_dim=16,
        hidden_size=WIDTH,
        intermediate_size=64,
        latent_channel=4,
        latent_patch_size=2,
        num_attention_heads=2,
        num_hidden_layers=1,
        num_key_value_heads=1,
        patch_latent_dim=16,
        vocab_size=VOCABULARY + 8,
        rope_scaling={"mrope_section": [2, 3, 3], "mrope_interleaved": True, "rope_type": "default"},
    )
    return (
        "Cosmos3DistilledModularPipeline" if distilled else "Cosmos3OmniModularPipeline",
        {
            "text_tokenizer": qwen_tokenizer(),
            "vae": components["vae"],
            "transformer": transformer,
            "scheduler": flow(shift=3.0) if distilled else components["scheduler"],
        },
        {},
    )

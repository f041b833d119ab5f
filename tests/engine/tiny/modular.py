"""Tiny models of picture families that come as modular pipelines, and of what there is since."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from tests.engine.tiny.parts import (
    VOCABULARY,
    WIDTH,
    Components,
    flow,
    flux2_vae,
    mistral3,
    qwen3,
    qwen3_vl,
    qwen3_vl_processor,
    qwen_tokenizer,
    qwen_vae,
    t5_tokenizer,
)
from tests.engine.tiny.pictures import Model, krea_2, qwen_image_edit


def krea_2_turbo() -> Model:
    pipeline, components, _ = krea_2()
    return pipeline, components, {"is_distilled": True}


def anima() -> Model:
    """Two tokenizers, one text encoder; what the other would have read is conditioned beside the denoiser."""
    conditioner = diffusers.AnimaTextConditioner(
        source_dim=WIDTH,
        target_dim=WIDTH,
        model_dim=WIDTH,
        num_layers=1,
        num_attention_heads=2,
        target_vocab_size=64,
        min_sequence_length=16,
    )
    transformer = diffusers.CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        mlp_ratio=2,
        text_embed_dim=WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        rope_scale=(1.0, 1.0, 1.0),
        extra_pos_embed_type=None,
    )
    return (
        "AnimaModularPipeline",
        {
            "scheduler": flow(shift=3.0),
            "text_encoder": qwen3(causal=False, layers=2),
            "tokenizer": qwen_tokenizer(),
            "t5_tokenizer": t5_tokenizer(),
            "text_conditioner": conditioner,
            "transformer": transformer,
            "vae": qwen_vae(8),
        },
        {},
    )


def ernie_image() -> Model:
    """Without the language model that rewrites prompts, which a request has to ask for."""
    transformer = diffusers.ErnieImageTransformer2DModel(
        hidden_size=WIDTH,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=64,
        in_channels=16,
        out_channels=16,
        text_in_dim=WIDTH,
        rope_axes_dim=(4, 4, 8),
    )
    return (
        "ErnieImagePipeline",
        {
            "scheduler": flow(shift=3.0),
            "text_encoder": transformers.Mistral3Model(mistral3("ministral3", layers=3)),
            "tokenizer": qwen_tokenizer(),
            "transformer": transformer,
            "vae": flux2_vae(),
        },
        {},
    )


def flux_3(distilled: bool) -> Model:
    """Its text encoder is read at eight layers, the last of which is the 32nd. Without the prompt upsampler."""
    transformer = diffusers.Flux3Transformer2DModel(
        in_channels=16,
        cond_in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8 * WIDTH,
        timestep_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        flow_map=distilled,
    )
    processor, tokens = qwen3_vl_processor()
    return (
        "Flux3DistilledModularPipeline" if distilled else "Flux3ModularPipeline",
        {
            "scheduler": flow(shift=3.0),
            "text_encoder": qwen3_vl(layers=33, generative=True, **tokens),
            "tokenizer": processor,
            "transformer": transformer,
            "vae": flux2_vae(),
        },
        {},
    )


def ideogram_4() -> Model:
    """Its text encoder is read at thirteen of its 36 layers; guidance has a denoiser of its own."""

    def denoiser() -> Any:
        return diffusers.Ideogram4Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            intermediate_size=32,
            adaln_dim=16,
            llm_features_dim=13 * WIDTH,
            mrope_section=(3, 2, 2),
        )

    return (
        "Ideogram4Pipeline",
        {
            "scheduler": flow(),
            "text_encoder": qwen3_vl(layers=36),
            "tokenizer": qwen_tokenizer(),
            "transformer": denoiser(),
            "unconditional_transformer": denoiser(),
            "prompt_enhancer_head": diffusers.Ideogram4PromptEnhancerHead(hidden_size=WIDTH, vocab_size=VOCABULARY),
            "vae": flux2_vae(),
        },
        {},
    )


def qwen_image_2_1(turbo: bool) -> Model:
    """Pictures have four channels; a denoised token stands for 16 × 16 pixels."""
    transformer = diffusers.QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage21(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[1.1, 0.9, 1.2, 1.0],
    )
    processor, tokens = qwen3_vl_processor()
    return (
        "QwenImage21TurboModularPipeline" if turbo else "QwenImage21ModularPipeline",
        {
            "scheduler": flow(use_dynamic_shifting=True),
            "text_encoder": qwen3_vl(layers=2, generative=True, **tokens),
            "processor": processor,
            "transformer": transformer,
            "vae": vae,
        },
        {"sample_sigmas": [1.0, 0.75, 0.5, 0.25]} if turbo else {},
    )


def qwen_image_layered() -> Model:
    _, components, _ = qwen_image_edit("QwenImageLayeredPipeline")
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=2,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[1.1, 0.9, 1.2, 1.0],
        input_channels=4,
    )
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
        use_additional_t_cond=True,
        use_layer3d_rope=True,
    )
    own: Components = {"vae": vae, "transformer": transformer}
    return "QwenImageLayeredPipeline", components | own, {}

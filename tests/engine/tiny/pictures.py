"""Tiny models of families that have a pipeline of the old kind as well, in whose form the hub holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
import transformers

from tests.engine.tiny.parts import (
    VOCABULARY,
    WIDTH,
    Components,
    clip,
    clip_tokenizer,
    flow,
    flux2_vae,
    mistral3,
    qwen3,
    qwen_tokenizer,
    qwen_vae,
    qwen_vision_language,
    t5,
    t5_tokenizer,
    vae,
    vision_tokenizer,
)

Model = tuple[str, Components, Mapping[str, Any]]
"""Class, components, and what else its index says."""


def z_image() -> Model:
    """With a VAE factor of 16."""
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=WIDTH,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    # These start empty, not random.
    torch.nn.init.normal_(transformer.x_pad_token)
    torch.nn.init.normal_(transformer.cap_pad_token)
    return (
        "ZImagePipeline",
        {
            "scheduler": flow(use_dynamic_shifting=True),
            "text_encoder": qwen3(causal=False, layers=3),
            "tokenizer": qwen_tokenizer(),
            "transformer": transformer,
            "vae": vae(16, 4, shift_factor=0.1),
        },
        {},
    )


def flux(pipeline: str = "FluxPipeline", vae_factor: int = 4) -> Model:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    return (
        pipeline,
        {
            "scheduler": flow(use_dynamic_shifting=True),
            "text_encoder": clip(),
            "text_encoder_2": t5(WIDTH),
            "tokenizer": clip_tokenizer(),
            "tokenizer_2": t5_tokenizer(),
            "transformer": transformer,
            "vae": vae(vae_factor, 4, shift_factor=0.1),
            "image_encoder": None,
            "feature_extractor": None,
        },
        {},
    )


def flux2(distilled: bool, guidance_embeds: bool = False) -> Model:
    """The klein form; its text encoder is read at layers 9, 18 and 27."""
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    return (
        "Flux2KleinPipeline",
        {
            "scheduler": flow(use_dynamic_shifting=True),
            "text_encoder": qwen3(causal=True, layers=28),
            "tokenizer": qwen_tokenizer(),
            "transformer": transformer,
            "vae": flux2_vae(),
        },
        {"is_distilled": distilled},
    )


def flux2_dev() -> Model:
    """Its text encoder is read at layers 10, 20 and 30."""
    _, components, _ = flux2(distilled=True, guidance_embeds=True)
    encoder = transformers.Mistral3ForConditionalGeneration(mistral3("mistral", layers=31))
    return "Flux2Pipeline", components | {"text_encoder": encoder}, {}


def stable_diffusion_3(with_t5: bool) -> Model:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=32,
    )
    return (
        "StableDiffusion3Pipeline",
        {
            "scheduler": flow(shift=3.0),
            "text_encoder": clip(WIDTH),
            "text_encoder_2": clip(WIDTH),
            "text_encoder_3": t5(2 * WIDTH) if with_t5 else None,
            "tokenizer": clip_tokenizer(),
            "tokenizer_2": clip_tokenizer(),
            "tokenizer_3": t5_tokenizer() if with_t5 else None,
            "transformer": transformer,
            "vae": vae(8, 4, shift_factor=0.1),
            "image_encoder": None,
            "feature_extractor": None,
        },
        {},
    )


def stable_diffusion_xl() -> Model:
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        cross_attention_dim=2 * WIDTH,
        transformer_layers_per_block=(1, 1),
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    return (
        "StableDiffusionXLPipeline",
        {
            "scheduler": diffusers.EulerDiscreteScheduler(
                beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
            ),
            "text_encoder": clip(),
            "text_encoder_2": clip(WIDTH),
            "tokenizer": clip_tokenizer(),
            "tokenizer_2": clip_tokenizer(),
            "unet": unet,
            "vae": vae(8, 4),
            "image_encoder": None,
            "feature_extractor": None,
        },
        {"force_zeros_for_empty_prompt": True},
    )


def qwen_image() -> Model:
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    return (
        "QwenImagePipeline",
        {
            "scheduler": flow(use_dynamic_shifting=True),
            "text_encoder": qwen_vision_language(),
            "tokenizer": qwen_tokenizer(),
            "transformer": transformer,
            "vae": qwen_vae(8),
        },
        {},
    )


def krea_2() -> Model:
    """Its text encoder is read at twelve of its 36 layers, which stay apart in the embedding."""
    _, components, _ = qwen_image()
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 36,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    encoder = transformers.Qwen3VLModel(transformers.Qwen3VLConfig(text_config=text, vision_config=vision))
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        timestep_embed_dim=8,
        text_hidden_dim=WIDTH,
        num_text_layers=12,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
    return "Krea2Pipeline", components | {"text_encoder": encoder, "transformer": transformer}, {}


def qwen_image_edit(pipeline: str) -> Model:
    """Its text encoder sees the pictures too. They are encoded at a megapixel, by the narrowest VAE that there is."""
    _, components, _ = qwen_image()
    tokenizer, tokens = vision_tokenizer()
    processor = transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(min_pixels=3136, max_pixels=12_845_056),  # as published
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(),
    )
    encoder = qwen_vision_language(len(tokenizer), **tokens)
    own = {"text_encoder": encoder, "tokenizer": tokenizer, "processor": processor, "vae": qwen_vae(2)}
    return pipeline, components | own, {}

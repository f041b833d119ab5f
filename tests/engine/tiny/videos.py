"""Tiny models of video families."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from tests.engine.tiny.parts import VOCABULARY, WIDTH, flow, qwen_tokenizer, t5, t5_tokenizer
from tests.engine.tiny.pictures import Model


def _wan_denoiser(in_channels: int = 4, **options: Any) -> Any:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=in_channels,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
        **options,
    )


def wan(pipeline: str, two: bool = False) -> Model:
    """2.2 has two denoisers: the first for the noisy steps, the second for the others."""
    config = transformers.UMT5Config(vocab_size=64, d_model=WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[1.1, 0.9, 1.2, 1.0],
    )
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return (
        pipeline,
        {
            "scheduler": scheduler,
            "text_encoder": transformers.UMT5EncoderModel(config),
            "tokenizer": t5_tokenizer(),
            "transformer": _wan_denoiser(),
            "transformer_2": _wan_denoiser() if two else None,
            "vae": vae,
        },
        {"boundary_ratio": 0.9} if two else {},
    )


def wan_2_2_i2v() -> Model:
    """The picture is encoded by its autoencoder alone."""
    _, components, config = wan("WanPipeline", two=True)
    own = {name: _wan_denoiser(in_channels=12) for name in ("transformer", "transformer_2")}
    return "WanImageToVideoPipeline", components | own, config


def wan_i2v() -> Model:
    """Its picture is read by an encoder of its own, too."""
    _, components, _ = wan("WanPipeline")
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        intermediate_size=16,
        patch_size=8,
    )
    own = {
        "transformer": _wan_denoiser(in_channels=12, image_dim=16, added_kv_proj_dim=24),
        "image_encoder": transformers.CLIPVisionModel(config),
        "image_processor": transformers.CLIPImageProcessor(crop_size=32, size=32),
    }
    return "WanImageToVideoPipeline", components | own, {}


def ltx() -> Model:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=WIDTH,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    return (
        "LTXPipeline",
        {
            "scheduler": flow(),
            "text_encoder": t5(WIDTH),
            "tokenizer": t5_tokenizer(),
            "transformer": transformer,
            "vae": vae,
        },
        {},
    )


def hunyuan_1_5(task: str = "t2v") -> Model:
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        image_embed_dim=12,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type=task,
    )
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    text = transformers.Qwen2_5_VLTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    )
    glyphs = transformers.T5Config(vocab_size=384, d_model=WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    return (
        "HunyuanVideo15Pipeline",
        {
            "scheduler": flow(shift=7.0),
            "text_encoder": Qwen2_5_VLTextModel(text),
            "tokenizer": qwen_tokenizer(),
            "text_encoder_2": transformers.T5EncoderModel(glyphs),
            "tokenizer_2": transformers.ByT5Tokenizer(),
            "transformer": transformer,
            "vae": vae,
            "guider": diffusers.ClassifierFreeGuidance(guidance_scale=6.0),
        },
        {},
    )


def hunyuan_1_5_i2v() -> Model:
    """Its picture is read by an encoder of its own, too."""
    _, components, config = hunyuan_1_5("i2v")
    vision = transformers.SiglipVisionConfig(
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    own = {
        "image_encoder": transformers.SiglipVisionModel(vision),
        "feature_extractor": transformers.SiglipImageProcessor(size={"height": 32, "width": 32}),
    }
    return "HunyuanVideo15ImageToVideoPipeline", components | own, config


def helios(pyramid: bool, distilled: bool = False) -> Model:
    """Made in chunks of frames, each of which sees those before it; as a pyramid each in three sizes."""
    _, components, _ = wan("WanPipeline")
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[1.1, 0.9, 1.2, 1.0],
        scale_factor_spatial=4,
        scale_factor_temporal=2,
    )
    transformer = diffusers.HeliosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        rope_dim=(4, 4, 4),
    )
    stages: dict[str, Any] = {} if pyramid else {"stages": 1, "stage_range": [0, 1]}
    scheduler = diffusers.HeliosDMDScheduler() if distilled else diffusers.HeliosScheduler(**stages)
    own = {"vae": vae, "transformer": transformer, "scheduler": scheduler}
    pipeline = "HeliosPyramidPipeline" if pyramid else "HeliosPipeline"
    return (
        pipeline,
        {name: component for name, component in (components | own).items() if name != "transformer_2"},
        {"is_distilled": True} if distilled else {},
    )

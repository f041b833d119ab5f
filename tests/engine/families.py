"""Tiny models with random weights, one per family, saved as the plain pipeline folders that the hub holds.

``python tests/engine/families.py FAMILY DIR`` writes one. The same family gives the same bytes on every run.
"""

from __future__ import annotations

import json
import string
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from stage_server.engine.checkpoint import BUNDLED

Components = dict[str, Any]

_QWEN_VOCABULARY = 425
_WIDTH = 32


def build(family: str, folder: Path) -> Path:
    """Write the family's model to ``folder`` and return it."""
    state = torch.get_rng_state()
    torch.manual_seed(sum(family.encode()))
    pipeline, components, extra = FAMILIES[family]()
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": diffusers.__version__, **extra}
    for name, component in components.items():
        index[name] = [None, None] if component is None else _save(component, folder / name)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    torch.set_rng_state(state)
    return folder


def _save(component: Any, folder: Path) -> list[str]:
    if isinstance(component, torch.nn.Module):
        component.eval()
    component.save_pretrained(folder)
    return [type(component).__module__.split(".")[0], type(component).__name__]


def _qwen_tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(BUNDLED / "tiny-shapes" / "tokenizer")


def _clip_tokenizer() -> Any:
    pieces = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _t5_tokenizer() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in string.ascii_lowercase)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def _clip(projection: int = 0) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=54,
        hidden_size=_WIDTH,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=projection or _WIDTH,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return transformers.CLIPTextModelWithProjection(config) if projection else transformers.CLIPTextModel(config)


def _t5(width: int) -> Any:
    config = transformers.T5Config(vocab_size=64, d_model=width, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    return transformers.T5EncoderModel(config)


def _vae(factor: int, latent_channels: int, **options: Any) -> Any:
    stages = factor.bit_length()
    widths = (8, 16, 16, 16, 16)[:stages]
    return diffusers.AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        latent_channels=latent_channels,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.6,
        **options,
    )


def _flow(**options: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def _qwen3(causal: bool, layers: int) -> Any:
    config = transformers.Qwen3Config(
        vocab_size=_QWEN_VOCABULARY,
        hidden_size=_WIDTH,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=1024,
    )
    return transformers.Qwen3ForCausalLM(config) if causal else transformers.Qwen3Model(config)


def _z_image() -> tuple[str, Components, Mapping[str, Any]]:
    """With a VAE factor of 16."""
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=_WIDTH,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=_WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    # These start empty, not random.
    torch.nn.init.normal_(transformer.x_pad_token)
    torch.nn.init.normal_(transformer.cap_pad_token)
    return (
        "ZImagePipeline",
        {
            "scheduler": _flow(use_dynamic_shifting=True),
            "text_encoder": _qwen3(causal=False, layers=3),
            "tokenizer": _qwen_tokenizer(),
            "transformer": transformer,
            "vae": _vae(16, 4, shift_factor=0.1),
        },
        {},
    )


def _flux(pipeline: str = "FluxPipeline", vae_factor: int = 4) -> tuple[str, Components, Mapping[str, Any]]:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_WIDTH,
        pooled_projection_dim=_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    return (
        pipeline,
        {
            "scheduler": _flow(use_dynamic_shifting=True),
            "text_encoder": _clip(),
            "text_encoder_2": _t5(_WIDTH),
            "tokenizer": _clip_tokenizer(),
            "tokenizer_2": _t5_tokenizer(),
            "transformer": transformer,
            "vae": _vae(vae_factor, 4, shift_factor=0.1),
            "image_encoder": None,
            "feature_extractor": None,
        },
        {},
    )


def _flux2(distilled: bool, guidance_embeds: bool = False) -> tuple[str, Components, Mapping[str, Any]]:
    """The klein form; its text encoder is read at layers 9, 18 and 27."""
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * _WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16, 16, 16), latent_channels=4, layers_per_block=1, norm_num_groups=4
    )
    return (
        "Flux2KleinPipeline",
        {
            "scheduler": _flow(use_dynamic_shifting=True),
            "text_encoder": _qwen3(causal=True, layers=28),
            "tokenizer": _qwen_tokenizer(),
            "transformer": transformer,
            "vae": vae,
        },
        {"is_distilled": distilled},
    )


def _flux2_dev() -> tuple[str, Components, Mapping[str, Any]]:
    """Its text encoder is read at layers 10, 20 and 30."""
    _, components, _ = _flux2(distilled=True, guidance_embeds=True)
    text = {
        "model_type": "mistral",
        "vocab_size": _QWEN_VOCABULARY,
        "hidden_size": _WIDTH,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 31,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "image_size": 30,
        "patch_size": 6,
    }
    config = transformers.Mistral3Config(
        text_config=text, vision_config=vision, vision_feature_layer=-1, image_token_index=1
    )
    encoder = transformers.Mistral3ForConditionalGeneration(config)
    return "Flux2Pipeline", components | {"text_encoder": encoder}, {}


def _stable_diffusion_3(t5: bool) -> tuple[str, Components, Mapping[str, Any]]:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * _WIDTH,
        caption_projection_dim=_WIDTH,
        pooled_projection_dim=2 * _WIDTH,
        pos_embed_max_size=32,
    )
    return (
        "StableDiffusion3Pipeline",
        {
            "scheduler": _flow(shift=3.0),
            "text_encoder": _clip(_WIDTH),
            "text_encoder_2": _clip(_WIDTH),
            "text_encoder_3": _t5(2 * _WIDTH) if t5 else None,
            "tokenizer": _clip_tokenizer(),
            "tokenizer_2": _clip_tokenizer(),
            "tokenizer_3": _t5_tokenizer() if t5 else None,
            "transformer": transformer,
            "vae": _vae(8, 4, shift_factor=0.1),
            "image_encoder": None,
            "feature_extractor": None,
        },
        {},
    )


def _stable_diffusion_xl() -> tuple[str, Components, Mapping[str, Any]]:
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        cross_attention_dim=2 * _WIDTH,
        transformer_layers_per_block=(1, 1),
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + _WIDTH,
    )
    return (
        "StableDiffusionXLPipeline",
        {
            "scheduler": diffusers.EulerDiscreteScheduler(
                beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
            ),
            "text_encoder": _clip(),
            "text_encoder_2": _clip(_WIDTH),
            "tokenizer": _clip_tokenizer(),
            "tokenizer_2": _clip_tokenizer(),
            "unet": unet,
            "vae": _vae(8, 4),
            "image_encoder": None,
            "feature_extractor": None,
        },
        {"force_zeros_for_empty_prompt": True},
    )


def _qwen_vision_language(vocabulary: int = _QWEN_VOCABULARY, **tokens: int) -> Any:
    text = {
        "vocab_size": vocabulary,
        "hidden_size": _WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    }
    vision = {"depth": 1, "hidden_size": _WIDTH, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": _WIDTH}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _qwen_vae(width: int) -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=width,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[1.1, 0.9, 1.2, 1.0],
    )


def _qwen_image() -> tuple[str, Components, Mapping[str, Any]]:
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    return (
        "QwenImagePipeline",
        {
            "scheduler": _flow(use_dynamic_shifting=True),
            "text_encoder": _qwen_vision_language(),
            "tokenizer": _qwen_tokenizer(),
            "transformer": transformer,
            "vae": _qwen_vae(8),
        },
        {},
    )


def _krea_2() -> tuple[str, Components, Mapping[str, Any]]:
    """Its text encoder is read at twelve of its 36 layers, which stay apart in the embedding."""
    _, components, _ = _qwen_image()
    text = {
        "vocab_size": _QWEN_VOCABULARY,
        "hidden_size": _WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 36,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": _WIDTH}
    encoder = transformers.Qwen3VLModel(transformers.Qwen3VLConfig(text_config=text, vision_config=vision))
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        timestep_embed_dim=8,
        text_hidden_dim=_WIDTH,
        num_text_layers=12,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
    return "Krea2Pipeline", components | {"text_encoder": encoder, "transformer": transformer}, {}


def _qwen_image_edit(pipeline: str) -> tuple[str, Components, Mapping[str, Any]]:
    """Its text encoder sees the pictures too. They are encoded at a megapixel, by the narrowest VAE that there is."""
    _, components, _ = _qwen_image()
    tokenizer = _qwen_tokenizer()
    tokenizer.model_max_length = 100_000
    special = {
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    }
    tokenizer.add_special_tokens({"additional_special_tokens": list(special.values())})
    tokens = {name: tokenizer.convert_tokens_to_ids(token) for name, token in special.items()}
    processor = transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(min_pixels=3136, max_pixels=12_845_056),  # as published
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(),
    )
    encoder = _qwen_vision_language(len(tokenizer), **tokens)
    own = {"text_encoder": encoder, "tokenizer": tokenizer, "processor": processor, "vae": _qwen_vae(2)}
    return pipeline, components | own, {}


FAMILIES: Mapping[str, Callable[[], tuple[str, Components, Mapping[str, Any]]]] = {
    "z-image": _z_image,
    "flux": _flux,
    "flux-kontext": lambda: _flux("FluxKontextPipeline", vae_factor=16),
    "flux2-dev": _flux2_dev,
    "flux2-klein": lambda: _flux2(distilled=True),
    "flux2-klein-base": lambda: _flux2(distilled=False),
    "krea-2": _krea_2,
    "stable-diffusion-3": lambda: _stable_diffusion_3(t5=False),
    "stable-diffusion-3-t5": lambda: _stable_diffusion_3(t5=True),
    "stable-diffusion-xl": _stable_diffusion_xl,
    "qwen-image": _qwen_image,
    "qwen-image-edit": lambda: _qwen_image_edit("QwenImageEditPipeline"),
    "qwen-image-edit-plus": lambda: _qwen_image_edit("QwenImageEditPlusPipeline"),
}

NEED_TORCHVISION = frozenset({"qwen-image-edit", "qwen-image-edit-plus"})


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in FAMILIES:
        sys.exit(f"usage: families.py {{{'|'.join(FAMILIES)}}} DIR")
    build(sys.argv[1], Path(sys.argv[2]))

"""Published configurations of the models that are measured, and tiny ones of the same form to test this with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    """That of the repository on the hub, so that profiles are found by it."""
    pipeline: str
    steps: int
    guidance: float
    components: Mapping[str, tuple[str, Config]]
    """Name → class, of diffusers or transformers, and its configuration."""
    tokenizers: Mapping[str, str]
    """Name → kind: ``qwen``, ``clip`` or ``t5``."""


_VAE: Config = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_TINY_VAE: Config = {**_VAE, "block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}

_QWEN3_4B: Config = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "tie_word_embeddings": True,
}
_TINY_QWEN3: Config = {
    **_QWEN3_4B,
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}

_Z_IMAGE: Config = {
    "all_f_patch_size": (1,),
    "all_patch_size": (2,),
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "cap_feat_dim": 2560,
    "dim": 3840,
    "in_channels": 16,
    "n_heads": 30,
    "n_kv_heads": 30,
    "n_layers": 30,
    "n_refiner_layers": 2,
}
_TINY_Z_IMAGE: Config = {
    **_Z_IMAGE,
    "axes_dims": [8, 4, 4],
    "cap_feat_dim": 32,
    "dim": 32,
    "n_heads": 2,
    "n_kv_heads": 2,
    "n_layers": 2,
    "n_refiner_layers": 1,
}

_CLIP_L: Config = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_TINY_CLIP: Config = {
    **_CLIP_L,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 32,
}

_T5_XXL: Config = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
_TINY_T5: Config = {**_T5_XXL, "vocab_size": 64, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}

_FLUX: Config = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
_TINY_FLUX: Config = {
    **_FLUX,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 4, 8),
}


def z_image(tiny: bool) -> Model:
    """Z-Image-Turbo: 6 B parameters, Qwen3-4B as its text encoder."""
    return Model(
        name="Z-Image-Turbo",
        pipeline="ZImagePipeline",
        steps=8,
        guidance=1.0,
        components={
            "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
            "text_encoder": ("Qwen3Model", _TINY_QWEN3 if tiny else _QWEN3_4B),
            "transformer": ("ZImageTransformer2DModel", _TINY_Z_IMAGE if tiny else _Z_IMAGE),
            "vae": ("AutoencoderKL", _TINY_VAE if tiny else _VAE),
        },
        tokenizers={"tokenizer": "qwen"},
    )


def flux(tiny: bool) -> Model:
    """FLUX.1-dev: 12 B parameters, T5-XXL and CLIP-L as its text encoders."""
    return Model(
        name="FLUX.1-dev",
        pipeline="FluxPipeline",
        steps=50,
        guidance=3.5,
        components={
            "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True}),
            "text_encoder": ("CLIPTextModel", _TINY_CLIP if tiny else _CLIP_L),
            "text_encoder_2": ("T5EncoderModel", _TINY_T5 if tiny else _T5_XXL),
            "transformer": ("FluxTransformer2DModel", _TINY_FLUX if tiny else _FLUX),
            "vae": ("AutoencoderKL", _TINY_VAE if tiny else _VAE),
        },
        tokenizers={"tokenizer": "clip", "tokenizer_2": "t5"},
    )


MODELS = {"z-image": z_image, "flux": flux}

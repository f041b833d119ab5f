"""The components that tiny models have in common: a few layers of random weights each."""

from __future__ import annotations

import string
from typing import Any

import diffusers
import transformers

from stage_server.engine.checkpoint import BUNDLED

Components = dict[str, Any]

VOCABULARY = 425
"""Of the bundled model's tokenizer."""
WIDTH = 32


def qwen_tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(BUNDLED / "tiny-shapes" / "tokenizer")


def clip_tokenizer() -> Any:
    pieces = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def t5_tokenizer() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in string.ascii_lowercase)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def clip(projection: int = 0) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=54,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=projection or WIDTH,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return transformers.CLIPTextModelWithProjection(config) if projection else transformers.CLIPTextModel(config)


def t5(width: int) -> Any:
    config = transformers.T5Config(vocab_size=64, d_model=width, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    return transformers.T5EncoderModel(config)


def vae(factor: int, latent_channels: int, **options: Any) -> Any:
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


def flow(**options: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def qwen3(causal: bool, layers: int) -> Any:
    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=1024,
    )
    return transformers.Qwen3ForCausalLM(config) if causal else transformers.Qwen3Model(config)


def qwen_vision_language(vocabulary: int = VOCABULARY, **tokens: int) -> Any:
    text = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    }
    vision = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": WIDTH}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def mistral3(model_type: str, layers: int) -> Any:
    """The configuration; ``model_type`` is that of its text model."""
    text = {
        "model_type": model_type,
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": layers,
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
    return transformers.Mistral3Config(
        text_config=text, vision_config=vision, vision_feature_layer=-1, image_token_index=1
    )


def qwen_vae(width: int) -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=width,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[1.1, 0.9, 1.2, 1.0],
    )


def flux2_vae() -> Any:
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16, 16, 16), latent_channels=4, layers_per_block=1, norm_num_groups=4
    )


def qwen3_vl(layers: int, generative: bool = False, vocabulary: int = VOCABULARY, **tokens: int) -> Any:
    text = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "deepstack_visual_indexes": [0],
    }
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **tokens)
    return transformers.Qwen3VLForConditionalGeneration(config) if generative else transformers.Qwen3VLModel(config)


def vision_tokenizer() -> tuple[Any, dict[str, int]]:
    """With tokens that stand for pictures, and their ids as configurations name them."""
    tokenizer = qwen_tokenizer()
    tokenizer.model_max_length = 100_000
    special = {
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    }
    tokenizer.add_special_tokens({"additional_special_tokens": list(special.values())})
    return tokenizer, {name: tokenizer.convert_tokens_to_ids(token) for name, token in special.items()}


_CHAT = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def qwen3_vl_processor() -> tuple[Any, dict[str, int]]:
    """And what the configuration of its text encoder says of its tokens."""
    tokenizer, tokens = vision_tokenizer()
    processor = transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(patch_size=16, min_pixels=65_536, max_pixels=16_777_216),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen3VLVideoProcessor(),
        chat_template=_CHAT,
    )
    return processor, tokens | {"vocabulary": len(tokenizer)}

"""A byte-level BPE tokenizer of Qwen's kind, trained on captions alone, so that the embedding table stays tiny."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from random import Random

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from examples.train_tiny_shapes.scenes import caption, random_scene

VOCABULARY_LIMIT = 640
LONGEST_PROMPT = 512
"""Tokens; Z-Image pads prompts to it."""
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
"""Z-Image sends every prompt through the chat template; this one adds next to nothing."""


def train_tokenizer(captions: int, seed: int = 1) -> Qwen2Tokenizer:
    """Learn the words of ``captions`` random captions."""
    rng = Random(seed)
    vocabulary, merges = _learn(caption(random_scene(rng), rng) for _ in range(captions))
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.model_max_length = LONGEST_PROMPT
    return tokenizer


def encode_prompts(tokenizer: Qwen2Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, unpadded, wrapped as ``CHAT_TEMPLATE`` wraps it."""
    ids: list[list[int]] = tokenizer([f"<|im_start|>{prompt}<|im_end|>" for prompt in prompts])["input_ids"]
    return ids


def _learn(captions: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    byte_level = Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_LIMIT,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    byte_level.train_from_iterator(captions, trainer)
    model = json.loads(byte_level.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]

"""A tiny language model with random weights, whose tokens are words, as a folder that transformers would publish."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ("a", "red", "circle", "star", "on", "white", "background", "with", "soft", "light", "in", "bright", "colors")
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|system|>", "<|assistant|>"]
CHAT = "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} {% endfor %}<|assistant|>"
WITHOUT_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT


def save_enhancer(folder: Path, seed: int = 1, chat: str | None = CHAT, **changed: object) -> Path:
    """One layer of sixteen channels."""
    torch.manual_seed(seed)
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[0]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token=SPECIAL[0], eos_token=SPECIAL[2], additional_special_tokens=SPECIAL[3:]
    )
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)
    shape: dict[str, object] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "eos_token_id": 2,
        "bos_token_id": 1,
    }
    config = LlamaConfig(vocab_size=len(vocabulary), **shape | changed)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def by_transformers_alone(folder: Path, text: str, most: int) -> str:
    """Greedy, as the library's documentation has it; ``text`` as the model is given it."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    inputs = tokenizer(text, return_tensors="pt")
    made = model.generate(input_ids=inputs["input_ids"], do_sample=False, max_new_tokens=most)
    words: str = tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return words.strip()

"""Flow matching: the transformer learns the way from noise to latents, the text encoder learns with it from zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F  # noqa: N812 - its name everywhere
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from examples.train_tiny_shapes.latents import CaptionedLatents
from examples.train_tiny_shapes.optimisation import Log, WeightAverage, steps, update
from examples.train_tiny_shapes.plan import Phase, Size
from examples.train_tiny_shapes.tokenizer import encode_prompts

CAPTION_DROPOUT = 0.1
"""Share of captions replaced by the empty one: classifier-free guidance needs to know pictures without a caption."""
BASE_TOKENS, MAX_TOKENS, BASE_SHIFT, MAX_SHIFT = 256, 4096, 0.5, 1.15
"""Z-Image's shift of timesteps by picture size, as its scheduler applies it when it samples."""


@dataclass(frozen=True, slots=True)
class Denoiser:
    """The two models that are trained together."""

    text_encoder: Qwen3Model
    transformer: ZImageTransformer2DModel

    def parameters(self) -> list[Parameter]:
        return [*self.transformer.parameters(), *self.text_encoder.parameters()]


@dataclass(frozen=True, slots=True)
class Batch:
    latents: Tensor
    """float32 ``(n, 8, height / 8, width / 8)``."""
    prompts: list[Tensor]
    """Token ids of each caption, unpadded."""


def build_denoiser(vocabulary: int) -> Denoiser:
    """Random weights: 0.55 M parameters to read captions, 5 M to draw."""
    text_encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        )
    )
    transformer = ZImageTransformer2DModel(
        in_channels=8,
        dim=192,
        n_layers=6,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=128,
        axes_dims=[16, 16, 16],
        axes_lens=[1024, 256, 256],
        rope_theta=256.0,
    )
    return Denoiser(text_encoder, transformer)


class Sampler:
    """Draws batches: one picture size per batch, captions dropped now and then."""

    def __init__(
        self, data: dict[Size, CaptionedLatents], tokenizer: Qwen2Tokenizer, phase: Phase, batch_at_128: int
    ) -> None:
        self._rng = Random(phase.seed)
        self._sizes, self._weights = list(phase.size_weights), list(phase.size_weights.values())
        self._latents = {size: data[size].latents for size in self._sizes}
        self._prompts = {size: _token_ids(tokenizer, data[size].captions) for size in self._sizes}
        self._empty = _token_ids(tokenizer, [""])[0]
        self._batch_pixels = batch_at_128 * 128 * 128

    def draw(self) -> Batch:
        height, width = size = self._rng.choices(self._sizes, self._weights)[0]
        latents, prompts = self._latents[size], self._prompts[size]
        count = max(4, self._batch_pixels // (height * width))
        chosen = self._rng.choices(range(len(prompts)), k=count)
        return Batch(latents[chosen].float(), [self._maybe_dropped(prompts[index]) for index in chosen])

    def _maybe_dropped(self, prompt: Tensor) -> Tensor:
        return self._empty if self._rng.random() < CAPTION_DROPOUT else prompt


def train_phase(denoiser: Denoiser, sampler: Sampler, phase: Phase) -> None:
    """Train within ``phase.budget`` and leave the averaged weights in ``denoiser``."""
    torch.manual_seed(phase.seed)
    average, log = WeightAverage(denoiser.parameters()), Log("transformer")
    optimiser = torch.optim.AdamW(denoiser.parameters(), phase.peak_learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in steps(phase.budget):
        loss = flow_matching_loss(denoiser, sampler.draw())
        update(optimiser, loss, step.learning_rate(phase.peak_learning_rate, warmup_steps=200, floor=0.02))
        average.update(step.index)
        log.add(step, loss.item())
    average.install()


def flow_matching_loss(denoiser: Denoiser, batch: Batch) -> Tensor:
    """Mean squared error of the predicted velocity, from noise (sigma 1) to latents (sigma 0)."""
    sigmas = sample_sigmas(batch.latents).view(-1, 1, 1, 1)
    noise = torch.randn_like(batch.latents)
    noisy = (1 - sigmas) * batch.latents + sigmas * noise
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encode_captions(denoiser.text_encoder, batch.prompts)
        # Z-Image's pictures have a frame axis, and its timesteps run from 0 (noise) to 1.
        frames = list(noisy.unsqueeze(2).unbind(0))
        velocity = denoiser.transformer(frames, 1 - sigmas.flatten(), features, return_dict=False)[0]
    return F.mse_loss(torch.stack(velocity).squeeze(2).float(), batch.latents - noise)


def sample_sigmas(latents: Tensor) -> Tensor:
    """Logit-normal noise levels ``(n,)`` in 0..1, shifted towards noise as Z-Image's scheduler shifts them."""
    count, _, height, width = latents.shape
    tokens = height * width / 4
    shift = BASE_SHIFT + (MAX_SHIFT - BASE_SHIFT) * (tokens - BASE_TOKENS) / (MAX_TOKENS - BASE_TOKENS)
    uniform = torch.sigmoid(torch.randn(count))
    return math.exp(shift) / (math.exp(shift) + (1 / uniform - 1))


def encode_captions(text_encoder: Qwen3Model, prompts: list[Tensor]) -> list[Tensor]:
    """Features ``(tokens, 128)`` of each prompt: the last hidden state but one, as Z-Image reads them."""
    ids = pad_sequence(prompts, batch_first=True)
    mask = pad_sequence([torch.ones_like(prompt) for prompt in prompts], batch_first=True)
    hidden = text_encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
    return [features[: len(prompt)] for features, prompt in zip(hidden, prompts, strict=True)]


def _token_ids(tokenizer: Qwen2Tokenizer, captions: list[str]) -> list[Tensor]:
    return [torch.tensor(ids) for ids in encode_prompts(tokenizer, captions)]

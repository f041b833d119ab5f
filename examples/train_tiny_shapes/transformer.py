"""Flow matching: the transformer learns the way from noise to latents.

It learns it twice: on factor-8 latents together with the text encoder, from zero; then on factor-16 latents, with the
text encoder as it is, its own blocks to begin with, and new layers where latents come in and go out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from examples.train_tiny_shapes.latents import CaptionedLatents
from examples.train_tiny_shapes.optimisation import Log, WeightAverage, mixed_precision, steps, update
from examples.train_tiny_shapes.plan import FlowPhase, Shift, Size
from examples.train_tiny_shapes.tokenizer import encode_prompts

CAPTION_DROPOUT = 0.1
"""Share of captions replaced by the empty one: classifier-free guidance needs to know pictures without a caption."""
AVERAGE_DECAY = 0.9985
PADDING = 32
"""Z-Image pads picture and caption to multiples of so many tokens; captions fit into one."""
FEWEST, MOST = 4, 96
"""Pictures in a batch."""


@dataclass(frozen=True, slots=True)
class Denoiser:
    """What reads the prompt, and what draws."""

    text_encoder: Qwen3Model
    transformer: ZImageTransformer2DModel


@dataclass(frozen=True, slots=True)
class Batch:
    latents: Tensor
    """float32 ``(n, channels, height / factor, width / factor)``."""
    prompts: list[Tensor]
    """Token ids of each caption, unpadded."""


def build_denoiser(vocabulary: int) -> Denoiser:
    """Random weights for factor-8 latents of 8 channels: 0.55 M parameters to read captions, 5 M to draw."""
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
    return Denoiser(text_encoder, _build_transformer(in_channels=8))


def widen(denoiser: Denoiser, in_channels: int) -> Denoiser:
    """The same text encoder and blocks for latents of ``in_channels``: only the layers at both ends are new."""
    transformer = _build_transformer(in_channels)
    weights = transformer.state_dict()
    trained = denoiser.transformer.state_dict()
    transformer.load_state_dict(weights | {k: v for k, v in trained.items() if v.shape == weights[k].shape})
    return Denoiser(denoiser.text_encoder, transformer)


def _build_transformer(in_channels: int) -> ZImageTransformer2DModel:
    return ZImageTransformer2DModel(
        in_channels=in_channels,
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


class Sampler:
    """Draws batches: one picture size per batch, captions dropped now and then."""

    def __init__(self, data: dict[Size, CaptionedLatents], tokenizer: Qwen2Tokenizer, phase: FlowPhase) -> None:
        self._phase, self._rng = phase, Random(phase.seed)
        self._latents = {size: data[size].latents for size in phase.sizes}
        self._prompts = {size: _token_ids(tokenizer, data[size].captions) for size in phase.sizes}
        self._empty = _token_ids(tokenizer, [""])[0]

    def draw(self, progress: float) -> Batch:
        mix = self._phase.mix(progress)
        size = self._rng.choices(list(mix), list(mix.values()))[0]
        latents, prompts = self._latents[size], self._prompts[size]
        padded = math.ceil(_tokens(latents) / PADDING) * PADDING + PADDING
        count = max(FEWEST, min(MOST, self._phase.batch_tokens // padded))
        chosen = self._rng.choices(range(len(prompts)), k=count)
        return Batch(latents[chosen].float(), [self._maybe_dropped(prompts[index]) for index in chosen])

    def _maybe_dropped(self, prompt: Tensor) -> Tensor:
        return self._empty if self._rng.random() < CAPTION_DROPOUT else prompt


def train_phase(denoiser: Denoiser, sampler: Sampler, phase: FlowPhase) -> None:
    """Train within ``phase.budget`` and leave the averaged weights in ``denoiser``."""
    torch.manual_seed(phase.seed)
    denoiser.text_encoder.requires_grad_(phase.trains_text_encoder)
    optimisers = _optimisers(denoiser, phase)
    parameters = [p for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]]
    average, log = WeightAverage(parameters, AVERAGE_DECAY), Log("transformer")
    for step in steps(phase.budget):
        loss = flow_matching_loss(denoiser, sampler.draw(step.progress), phase.shift)
        update(optimisers, loss, step.learning_rate(phase.peak_learning_rate, warmup_steps=200, floor=0.02))
        average.update(step.index)
        log.add(step, loss.item())
    average.install()


def _optimisers(denoiser: Denoiser, phase: FlowPhase) -> list[torch.optim.Optimizer]:
    rate, transformer = phase.peak_learning_rate, denoiser.transformer
    if phase.trains_text_encoder:
        everything = [*transformer.parameters(), *denoiser.text_encoder.parameters()]
        return [torch.optim.AdamW(everything, rate, betas=(0.9, 0.98), weight_decay=0.01)]
    blocks = (transformer.layers, transformer.noise_refiner, transformer.context_refiner)
    matrices = [p for block in blocks for p in block.parameters() if p.ndim == 2]
    others = [p for p in transformer.parameters() if not any(p is matrix for matrix in matrices)]
    return [
        torch.optim.Muon(matrices, rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def flow_matching_loss(denoiser: Denoiser, batch: Batch, shift: Shift) -> Tensor:
    """Mean squared error of the predicted velocity, from noise (sigma 1) to latents (sigma 0)."""
    sigmas = sample_sigmas(batch.latents, shift).view(-1, 1, 1, 1)
    noise = torch.randn_like(batch.latents)
    noisy = (1 - sigmas) * batch.latents + sigmas * noise
    with mixed_precision():
        features = encode_captions(denoiser.text_encoder, batch.prompts)
        # Z-Image's pictures have a frame axis, and its timesteps run from 0 (noise) to 1.
        frames = list(noisy.unsqueeze(2).unbind(0))
        velocity = denoiser.transformer(frames, 1 - sigmas.flatten(), features, return_dict=False)[0]
    return F.mse_loss(torch.stack(velocity).squeeze(2).float(), batch.latents - noise)


def sample_sigmas(latents: Tensor, shift: Shift) -> Tensor:
    """Logit-normal noise levels ``(n,)`` in 0..1, shifted towards noise as Z-Image's scheduler shifts them."""
    lean = math.exp(shift.at(_tokens(latents)))
    uniform = torch.sigmoid(torch.randn(len(latents)))
    return lean / (lean + (1 / uniform - 1))


def _tokens(latents: Tensor) -> int:
    """Of one picture: a token stands for 2 × 2 latent elements."""
    height, width = latents.shape[-2:]
    return height * width // 4


def encode_captions(text_encoder: Qwen3Model, prompts: list[Tensor]) -> list[Tensor]:
    """Features ``(tokens, 128)`` of each prompt: the last hidden state but one, as Z-Image reads them."""
    ids = pad_sequence(prompts, batch_first=True)
    mask = pad_sequence([torch.ones_like(prompt) for prompt in prompts], batch_first=True)
    hidden = text_encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
    return [features[: len(prompt)] for features, prompt in zip(hidden, prompts, strict=True)]


def _token_ids(tokenizer: Qwen2Tokenizer, captions: list[str]) -> list[Tensor]:
    return [torch.tensor(ids) for ids in encode_prompts(tokenizer, captions)]

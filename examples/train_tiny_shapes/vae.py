"""The KL autoencoder: 8 latent channels at an eighth of the picture's height and width."""

from __future__ import annotations

from random import Random

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from examples.train_tiny_shapes.drawing import draw_batch
from examples.train_tiny_shapes.optimisation import Log, steps, update
from examples.train_tiny_shapes.plan import Plan

PEAK_LEARNING_RATE = 2e-3
LATENT_NOISE = 0.05
"""Added while training, so that the decoder forgives the transformer's small errors."""
FOREGROUND_WEIGHT = 3.0
"""Shapes are a small part of the picture; without it, backgrounds are learned first and shapes stay pale."""
FOREGROUND_CONTRAST = 0.08


def build_vae() -> AutoencoderKL:
    """Random weights.

    One norm group: with 8 groups of 2 channels, group norm throws the amplitude away and shapes come out in the
    wrong colour (foreground-weighted L1 0.09 after 1,900 s of training, against 0.022 after 1,000 s with one group).
    """
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=1,
        sample_size=256,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ).to(memory_format=torch.channels_last)


def train_vae(plan: Plan, seed: int = 21) -> AutoencoderKL:
    """Train from zero within ``plan.vae``; the result knows its latents' mean and scale."""
    torch.manual_seed(seed)
    rng, vae, log = Random(seed), build_vae(), Log("vae")
    optimiser = torch.optim.AdamW(vae.parameters(), PEAK_LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    sizes, frequencies = list(plan.vae_batches), [frequency for _, frequency in plan.vae_batches.values()]
    for step in steps(plan.vae):
        height, width = size = rng.choices(sizes, frequencies)[0]
        _, pictures = draw_batch(plan.vae_batches[size][0], height, width, rng)
        loss = vae_loss(vae, pictures)
        update(optimiser, loss, step.learning_rate(PEAK_LEARNING_RATE, warmup_steps=60, floor=0.01))
        log.add(step, loss.item())
    _measure_scale(vae, plan.scale_batches, rng)
    return vae.eval()


def vae_loss(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Reconstruction of ``pictures`` ``(n, 3, height, width)``: values and edges, with a light pull on the latents."""
    posterior = vae.encode(pictures).latent_dist
    restored = vae.decode(posterior.mean + LATENT_NOISE * torch.randn_like(posterior.mean)).sample
    error = restored - pictures
    values = ((error.abs() + error**2) * _foreground_weights(pictures)).mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    latents = 1e-4 * (posterior.mean**2).mean() + 1e-5 * (posterior.logvar + 4).pow(2).mean()
    loss: Tensor = values + 0.25 * edges + latents
    return loss


def _foreground_weights(pictures: Tensor) -> Tensor:
    """``(n, 1, height, width)``; the corner pixel is always background."""
    contrast = (pictures - pictures[:, :, :1, :1]).abs().amax(1, keepdim=True)
    return torch.where(contrast > FOREGROUND_CONTRAST, FOREGROUND_WEIGHT, 1.0)


@torch.no_grad()
def _measure_scale(vae: AutoencoderKL, batches: int, rng: Random) -> None:
    """Flow matching wants latents of mean 0 and deviation 1: note in the configuration how to get there."""
    pictures = (draw_batch(16, 128, 128, rng)[1] for _ in range(batches))
    latents = torch.cat([vae.encode(batch).latent_dist.mode() for batch in pictures])
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())

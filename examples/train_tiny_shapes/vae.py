"""The KL autoencoders: how they are built, and their training on pictures."""

from __future__ import annotations

from random import Random

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from examples.train_tiny_shapes.drawing import draw_batch
from examples.train_tiny_shapes.optimisation import Log, WeightAverage, mixed_precision, steps, update
from examples.train_tiny_shapes.plan import PicturePhase

LATENT_NOISE = 0.05
"""Added while training, so that the decoder forgives the transformer's small errors."""
FOREGROUND_WEIGHT, EDGE_WEIGHT = 3.0, 6.0
"""Shapes are a small part of the picture; without it, backgrounds are learned first and shapes stay pale."""
FOREGROUND_CONTRAST, EDGE_CONTRAST = 0.08, 0.02
AVERAGE_DECAY = 0.997
SCALE_SIZE, SCALE_BATCH = (256, 256), 8


def build_vae8() -> AutoencoderKL:
    """Random weights: 8 latent channels at an eighth of the picture's height and width."""
    return _build((16, 32, 48, 64), latent_channels=8)


def build_vae16() -> AutoencoderKL:
    """Random weights: one level more, 16 latent channels at a sixteenth."""
    return _build((16, 32, 48, 64, 64), latent_channels=16)


def _build(channels: tuple[int, ...], latent_channels: int) -> AutoencoderKL:
    """One norm group: with 8 groups of 2 channels, group norm throws the amplitude away and shapes come out in the
    wrong colour (foreground-weighted L1 0.09 after 1,900 s of training, against 0.022 after 1,000 s with one group).
    """
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=1,
        sample_size=256,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ).to(memory_format=torch.channels_last)


def train_vae(vae: AutoencoderKL, phase: PicturePhase) -> None:
    """Train within ``phase.budget``; ``vae`` then has the averaged weights and knows its latents' mean and scale."""
    torch.manual_seed(phase.seed)
    rng, average, log = Random(phase.seed), WeightAverage(vae.parameters(), AVERAGE_DECAY), Log("vae")
    optimiser = torch.optim.AdamW(vae.parameters(), phase.peak_learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    sizes, frequencies = list(phase.batches), [frequency for _, frequency in phase.batches.values()]
    vae.train()
    for step in steps(phase.budget):
        height, width = size = rng.choices(sizes, frequencies)[0]
        _, pictures = draw_batch(phase.batches[size][0], height, width, rng)
        loss = vae_loss(vae, pictures)
        update([optimiser], loss, step.learning_rate(phase.peak_learning_rate, warmup_steps=50, floor=0.02))
        average.update(step.index)
        log.add(step, loss.item())
    average.install()
    vae.eval()
    _measure_scale(vae, phase.scale_pictures // SCALE_BATCH, rng)


def vae_loss(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Reconstruction of ``pictures`` ``(n, 3, height, width)``: values and edges, with a light pull on the latents."""
    with mixed_precision():
        posterior = vae.encode(pictures).latent_dist
        mean = posterior.mean.float()
        restored = vae.decode(mean + LATENT_NOISE * torch.randn_like(mean)).sample.float()
    error = restored - pictures
    values = ((error.abs() + error**2) * pixel_weights(pictures)).mean()
    slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    loss: Tensor = values + 0.25 * slopes + latent_loss(mean, posterior.logvar.float())
    return loss


def latent_loss(mean: Tensor, logvar: Tensor) -> Tensor:
    """Keeps the latents near 0."""
    return 1e-4 * (mean**2).mean() + 1e-5 * (logvar + 4).pow(2).mean()


def pixel_weights(pictures: Tensor) -> Tensor:
    """``(n, 1, height, width)``: 1 for background, 3 inside shapes, 3 more along edges."""
    corner = pictures[:, :, :1, :1]  # always background
    foreground = (pictures - corner).abs().amax(1, keepdim=True) > FOREGROUND_CONTRAST
    inner = pictures[:, :, 1:-1, 1:-1]
    unlike = (inner - F.avg_pool2d(pictures, 3, stride=1)).abs().amax(1, keepdim=True) > EDGE_CONTRAST
    edges = F.max_pool2d(F.pad(unlike.float(), (1, 1, 1, 1)), 3, stride=1, padding=1)
    return 1 + (FOREGROUND_WEIGHT - 1) * foreground + (EDGE_WEIGHT - FOREGROUND_WEIGHT) * edges


@torch.no_grad()
def _measure_scale(vae: AutoencoderKL, batches: int, rng: Random) -> None:
    """Flow matching wants latents of mean 0 and deviation 1: note in the configuration how to get there."""
    pictures = (draw_batch(SCALE_BATCH, *SCALE_SIZE, rng)[1] for _ in range(batches))
    latents = torch.cat([vae.encode(batch).latent_dist.mode() for batch in pictures])
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())

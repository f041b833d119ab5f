"""A factor-16 autoencoder from a factor-8 one: outer levels copied, the inner level learned on their features.

From zero, a factor-16 autoencoder got nowhere in 400 s (error 0.5); the inner level alone took 100 s (0.009, against
0.007 of the factor-8 one that it imitates).
"""

from __future__ import annotations

from random import Random

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from examples.train_tiny_shapes.drawing import draw_batch
from examples.train_tiny_shapes.optimisation import Log, mixed_precision, steps, update
from examples.train_tiny_shapes.plan import DistillationPhase
from examples.train_tiny_shapes.vae import LATENT_NOISE, build_vae16, latent_loss

BATCH = 16
OUTER_LEVELS = 4


def distil(vae8: AutoencoderKL, phase: DistillationPhase) -> AutoencoderKL:
    """A factor-16 autoencoder whose inner level does what ``vae8`` does between its last level down and first up."""
    torch.manual_seed(phase.seed)
    rng, log, vae16 = Random(phase.seed), Log("inner level"), build_vae16()
    _copy_outer_levels(vae8, vae16)
    bank = [
        _features(vae8, draw_batch(count, *size, rng)[1])
        for size, (count, batches) in phase.batches.items()
        for _ in range(batches)
    ]
    scale = bank[0][1].float().std()
    parameters = [p for module in _inner_level(vae16) for p in module.parameters()]
    optimiser = torch.optim.AdamW(parameters, phase.peak_learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    for step in steps(phase.budget):
        before, after = rng.choice(bank)
        some = torch.randperm(len(before))[:BATCH]
        loss = _loss(vae16, before[some].float(), after[some].float(), scale)
        update([optimiser], loss, step.learning_rate(phase.peak_learning_rate, warmup_steps=100, floor=0.02))
        log.add(step, loss.item())
    return vae16


@torch.no_grad()
def _features(vae8: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """What ``vae8`` has before and after its innermost part, bfloat16 ``(n, 64, height / 8, width / 8)``."""
    encoder, decoder = vae8.encoder, vae8.decoder
    with mixed_precision():
        before = encoder.conv_in(pictures)
        for block in encoder.down_blocks:
            before = block(before)
        latents = vae8.encode(pictures).latent_dist.mode()
        after = decoder.mid_block(decoder.conv_in(latents))
    return before.bfloat16(), after.bfloat16()


def _copy_outer_levels(vae8: AutoencoderKL, vae16: AutoencoderKL) -> None:
    vae16.encoder.conv_in.load_state_dict(vae8.encoder.conv_in.state_dict())
    for level in range(OUTER_LEVELS):
        # The last level down has a downsampler in vae16 alone: it belongs to the inner level.
        vae16.encoder.down_blocks[level].load_state_dict(vae8.encoder.down_blocks[level].state_dict(), strict=False)
        vae16.decoder.up_blocks[level + 1].load_state_dict(vae8.decoder.up_blocks[level].state_dict())
    vae16.decoder.conv_norm_out.load_state_dict(vae8.decoder.conv_norm_out.state_dict())
    vae16.decoder.conv_out.load_state_dict(vae8.decoder.conv_out.state_dict())


def _inner_level(vae: AutoencoderKL) -> list[torch.nn.Module]:
    encoder, decoder = vae.encoder, vae.decoder
    down = [encoder.down_blocks[-2].downsamplers, encoder.down_blocks[-1], encoder.mid_block]
    return [*down, encoder.conv_norm_out, encoder.conv_out, decoder.conv_in, decoder.mid_block, decoder.up_blocks[0]]


def _loss(vae: AutoencoderKL, before: Tensor, after: Tensor, scale: Tensor) -> Tensor:
    """Error of the inner level's features in units of ``scale``, their deviation."""
    encoder, decoder = vae.encoder, vae.decoder
    with mixed_precision():
        hidden = encoder.down_blocks[-2].downsamplers[0](before)
        hidden = encoder.mid_block(encoder.down_blocks[-1](hidden))
        mean, logvar = encoder.conv_out(F.silu(encoder.conv_norm_out(hidden))).float().chunk(2, dim=1)
        latents = mean + LATENT_NOISE * torch.randn_like(mean)
        restored = decoder.up_blocks[0](decoder.mid_block(decoder.conv_in(latents))).float()
    return ((restored - after) / scale).pow(2).mean() + latent_loss(mean, logvar)

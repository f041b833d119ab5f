"""Sizes that follow from a model's configuration: pixels, latents, embeddings.

They bound the bytes of outputs, and make stand-in inputs so that a role can be warmed up on its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_origin

import torch

from stage_server.engine.pictures import encoded_bound
from stage_server.engine.references import CONDITIONED, as_list, references

_TEMPLATE_TOKENS = 128
"""More tokens than chat templates and second text encoders add to ``max_sequence_length``."""
_CONDITION_PIXELS = 1 << 20
"""To about as many pixels some families scale the pictures that they are given, whatever size is asked for."""
_CONDITIONED = ("flux2", "flux3", "flux-kontext", "qwenimage-edit", "qwenimage21")
"""Those families, by the beginnings of their names."""
_TOKENS_PER_PICTURE = _CONDITION_PIXELS // 28**2 * 5 // 4
"""Of the prompt's embedding, where the text encoder sees the pictures; with a quarter to spare."""
_FLOAT32_TEXT = frozenset({"ideogram4"})
"""Families whose embeddings are float32, whatever the weights are."""
_SQUARE = (1024, 1024)
_WIDEST = 4096
"""Features per token, where no configuration names them."""
_IMAGE_TENSORS = 3
"""Image latents, masked image latents and mask: what an image encoder makes, each no larger than the latents."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the configurations of denoiser, VAE and image processor say about sizes."""

    family: str
    vae_factor: int
    """Pixels per latent element, along one side."""
    latent_channels: int
    video_vae: bool
    """Latents have a frame axis."""
    packed_latents: bool
    """The decoder reads latents of which 2 × 2 are one, as the VAE's normalization has them."""
    size_multiple: int
    """Pixels."""
    token_width: int
    """Features per token of the prompt's embedding; 0 where the configuration does not say."""
    token_layers: int
    """Hidden states per token that the embedding holds, along an axis of their own; 0 without that axis."""
    pooled_width: int
    """Features of the pooled embedding; 0 without one."""
    token_pixels: int
    """Side of the square of pixels that one token of the denoiser stands for."""

    @classmethod
    def read(cls, family: str, denoiser: Mapping[str, Any], vae: Mapping[str, Any], processor_factor: int) -> Geometry:
        """From the configurations of the transformer or unet and of the VAE; ``processor_factor`` in pixels."""
        factor = _vae_factor(vae)
        patch = 1 if "addition_embed_type" in denoiser else max(2, _patch_side(denoiser.get("patch_size") or 2))
        return cls(
            family=family,
            vae_factor=factor,
            latent_channels=int(vae.get("latent_channels") or vae.get("z_dim") or 16),
            video_vae="z_dim" in vae,
            packed_latents="batch_norm_eps" in vae and family != "ideogram4",
            size_multiple=math.lcm(factor * patch, processor_factor),
            token_width=_token_width(denoiser),
            token_layers=int(denoiser.get("num_text_layers") or 0),
            pooled_width=_pooled_width(denoiser),
            token_pixels=factor * patch,
        )

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        """Shape of what the decoder reads for one picture of ``width`` × ``height`` pixels."""
        columns, rows = width // self.vae_factor, height // self.vae_factor
        if self.packed_latents:
            return (1, self.latent_channels * 4, rows // 2, columns // 2)
        frames = (1,) if self.video_vae else ()
        return (1, self.latent_channels, *frames, rows, columns)

    def encoder_bound(self, tokens: int, itemsize: int, pixels: int, picture_pixels: Iterable[int]) -> int:
        """Bytes at most that the encoder role makes: embeddings, image latents, overlays."""
        conditioned = self.family.startswith(_CONDITIONED)
        picture_pixels = list(picture_pixels)
        length = tokens + _TEMPLATE_TOKENS
        if self.family.startswith(("qwenimage-edit", "qwenimage21")):
            length += len(picture_pixels) * _TOKENS_PER_PICTURE
        if self.family in _FLOAT32_TEXT:
            itemsize = 4
        token_bytes = (self.token_width or _WIDEST) * max(1, self.token_layers) * itemsize + 3 * 8
        text = 2 * (length * token_bytes + self.pooled_width * 4)
        images = 0
        for own_pixels in picture_pixels:
            area = max(pixels, own_pixels, _CONDITION_PIXELS if conditioned else 0)
            latents = area // self.vae_factor**2 * self.latent_channels * 4
            images += _IMAGE_TENSORS * latents + 3 * area * 4 + 2 * encoded_bound(area, 1)
        return text + images + (16 << 10)

    def dit_bound(self, width: int, height: int) -> int:
        """Bytes at most that the dit role makes: latents, in float32 at most, and small values."""
        return math.prod(self.latent_shape(width, height)) * 4 + (16 << 10)

    def stand_in_latents(self, width: int, height: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(self.latent_shape(width, height), dtype=dtype)

    def stand_in(self, output: Any, side: int, dtype: torch.dtype) -> Any:
        """Zeros in the form of a role's output (a diffusers ``OutputParam``) for a picture of ``side`` × ``side``
        pixels; None where the configurations do not tell its form."""
        name, tokens = output.name.removeprefix("negative_"), 16
        if name == "latents":
            return self.stand_in_latents(side, side, dtype)
        if name == "image_latents":
            return self._stand_in_reference(dtype)
        if name == "pooled_prompt_embeds" and self.pooled_width:
            return torch.zeros(1, self.pooled_width, dtype=dtype)
        if name == "prompt_embeds_mask":
            return torch.ones(1, tokens, dtype=torch.bool if self.token_layers else torch.int64)
        if name != "prompt_embeds" or not self.token_width:
            return None
        if get_origin(output.type_hint) is list:
            return [torch.zeros(tokens, self.token_width, dtype=dtype)]
        layers = (self.token_layers,) if self.token_layers else ()
        return torch.zeros(1, tokens, *layers, self.token_width, dtype=dtype)

    def _stand_in_reference(self, dtype: torch.dtype) -> Any:
        """Of one square picture, at the size at which the family encodes it; None where that is not known."""
        rule = references(self.family, CONDITIONED, self.token_pixels)
        if rule is None:
            return None
        latents = self.stand_in_latents(*rule.size(_SQUARE, _SQUARE), dtype)
        return [latents] if as_list(self.family) else latents


def _patch_side(size: int | Sequence[int]) -> int:
    """Some denoisers give one for each axis, frames first."""
    return int(size if isinstance(size, int) else size[-1])


def _vae_factor(vae: Mapping[str, Any]) -> int:
    stages = vae.get("temperal_downsample")
    if stages is not None:
        return 1 << len(stages)
    blocks = vae.get("block_out_channels")
    return 1 << (len(blocks) - 1) if blocks else 8


def _token_width(denoiser: Mapping[str, Any]) -> int:
    names = (
        "cap_feat_dim",
        "joint_attention_dim",
        "cross_attention_dim",
        "text_hidden_dim",
        "text_in_dim",
        "context_in_dim",
        "llm_features_dim",
        "text_embed_dim",
    )
    return next((int(denoiser[name]) for name in names if denoiser.get(name)), 0)


def _pooled_width(denoiser: Mapping[str, Any]) -> int:
    """SDXL concatenates the pooled embedding with six embedded numbers (sizes and crop)."""
    if "projection_class_embeddings_input_dim" in denoiser:
        return int(denoiser["projection_class_embeddings_input_dim"]) - 6 * int(denoiser["addition_time_embed_dim"])
    return int(denoiser.get("pooled_projection_dim") or 0)

"""What families do with the pictures that they are given as references. Their blocks have the numbers in their code."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

from wire.references import References

CONDITIONED, INPAINTING = "image_conditioned", "inpainting"

_MEGAPIXEL = 1 << 20
_SEVERAL = {"flux2": 6, "flux2-klein": 4, "qwenimage-edit-plus": 3, "flux3": 10, "flux3-distilled": 10}
"""Family → pictures. The blocks know no limit; these are what makers recommend. Qwen-Image-Edit-Plus: "optimal
performance is currently achieved with 1 to 3 input images", says the model card of Qwen-Image-Edit-2509, the first of
its checkpoints; diffusers has no number. FLUX.3's is that of its prompt upsampler."""


def _qwen_2_1() -> References:
    return References(area=_MEGAPIXEL, multiple=32, in_sequence=True, prompt_area=_MEGAPIXEL, prompt_patch=32)


_RULES: Mapping[tuple[str, str], Callable[[int], References]] = {
    ("flux-kontext", CONDITIONED): lambda _: References(
        sizes=tuple(PREFERRED_KONTEXT_RESOLUTIONS), multiple=16, in_sequence=True
    ),
    ("flux2", CONDITIONED): lambda token: References(max_area=_MEGAPIXEL, multiple=token, in_sequence=True),
    ("flux2-klein", CONDITIONED): lambda token: References(max_area=_MEGAPIXEL, multiple=token, in_sequence=True),
    ("qwenimage-edit", CONDITIONED): lambda _: References(
        area=_MEGAPIXEL, multiple=32, in_sequence=True, prompt_area=_MEGAPIXEL
    ),
    ("qwenimage-edit", INPAINTING): lambda _: References(in_sequence=True, prompt_area=_MEGAPIXEL),
    ("flux3", CONDITIONED): lambda token: References(max_area=4 * _MEGAPIXEL, multiple=token, in_sequence=True),
    ("flux3-distilled", CONDITIONED): lambda token: References(
        max_area=4 * _MEGAPIXEL, multiple=token, in_sequence=True
    ),
    ("qwenimage21", CONDITIONED): lambda _: _qwen_2_1(),
    ("qwenimage21-turbo", CONDITIONED): lambda _: _qwen_2_1(),
    ("qwenimage-edit-plus", CONDITIONED): lambda _: References(
        area=_MEGAPIXEL, multiple=32, in_sequence=True, prompt_area=384 * 384
    ),
}


def references(family: str, workflow: str, token_pixels: int) -> References | None:
    """None where pictures are brought to the size of the answer and nobody but the autoencoder reads them, or where the
    family is not known. ``token_pixels``: side of the square that a token of the denoiser stands for."""
    rule = _RULES.get((family, workflow))
    return None if rule is None else rule(token_pixels)


def max_images(family: str, workflow: str) -> int:
    """Pictures that the workflow takes, where it takes any."""
    return _SEVERAL.get(family, 1) if workflow == CONDITIONED else 1


def as_list(family: str) -> bool:
    """Whether latents of references come as a list, also of one."""
    return family in _SEVERAL

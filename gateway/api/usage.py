"""What a request took and made, in tokens: OpenAI's ``usage``."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.api.generation import Generation
from gateway.service.interfaces import PromptRead
from wire.references import png_size

MASK = "mask_image"


def usage(generation: Generation, prompt: PromptRead, pictures: int) -> dict[str, object] | None:
    """None where the prompt was not counted: part of ``usage`` is worse than none to clients."""
    return _usage(generation, prompt.tokens, pictures) if prompt.tokens else None


def event_usage(generation: Generation, prompt: PromptRead) -> dict[str, object]:
    """Of one picture. Events must have it: zeros stand for what is not known."""
    return usage(generation, prompt, 1) or {
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
    }


def _usage(generation: Generation, text: int, pictures: int) -> dict[str, object]:
    size, side = generation.size, generation.token_side
    sent, made = generation.uploaded_tokens, pictures * image_tokens(size.width, size.height, side)
    return {
        "input_tokens": text + sent,
        "output_tokens": made,
        "total_tokens": text + sent + made,
        "input_tokens_details": {"text_tokens": text, "image_tokens": sent},
    }


def image_tokens(width: int, height: int, side: int) -> int:
    """Of a picture, where a token stands for ``side`` × ``side`` pixels; begun ones count."""
    return -(-width // side) * -(-height // side)


def uploaded_tokens(uploads: Mapping[str, bytes], side: int) -> int:
    """Of PNG pictures, without the mask."""
    sizes = (png_size(data) for name, data in uploads.items() if name != MASK)
    return sum(image_tokens(*size, side) for size in sizes if size is not None)

"""How much work the pictures of a request make, by what its workflow does with them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from wire.params import Workflow
from wire.record import record
from wire.references import References, Size, png_size

_AS_THE_ANSWER = References()


@record(frozen=True, slots=True)
class PictureWork:
    """Of all pictures of one request together, the mask not counted."""

    encoded_pixels: int = 0
    """That the autoencoder encodes."""
    sequence_pixels: int = 0
    """Whose latents lengthen the dit's sequence."""
    prompt_tokens: int = 0
    """That the text encoder makes of them."""


def picture_work(workflow: Workflow, pictures: Iterable[bytes | None], answer: Size) -> PictureWork:
    """``pictures`` as PNG; one whose size cannot be read counts as one of the size of the answer."""
    rule = workflow.references or _AS_THE_ANSWER
    sizes = [png_size(data) or answer for data in pictures]
    encoded = sum(width * height for width, height in (rule.size(size, answer) for size in sizes))
    return PictureWork(encoded, encoded if rule.in_sequence else 0, sum(map(rule.prompt_tokens, sizes)))

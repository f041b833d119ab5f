"""The shape of the cost: which features of a job its time is linear in. Formulas: docs/profiles.md."""

from __future__ import annotations

from scheduler.cost.profile import ModelShape
from scheduler.cost.work import Work
from wire.types import Role

TEXT_STEP = 16
"""Prompt lengths are rounded up to it, so that nearby lengths count as the same kind of job."""

Row = tuple[float, ...]


def row(work: Work, shape: ModelShape) -> Row:
    """Features of one forward pass of one member, in the order of ``profile.COEFFICIENTS``."""
    if work.role is Role.ENHANCER:
        return (1.0, _stepped(work.text_tokens or shape.text_tokens))
    if work.role is Role.ENCODER:
        length = (work.text_tokens or shape.text_tokens) + work.picture_tokens
        return (1.0, _stepped(length), float(work.image_pixels))
    if work.role is Role.DIT:
        tokens = float(sequence_tokens(work, shape))
        return (1.0, tokens, tokens * tokens)
    return (1.0, float(work.height * work.width))


def _stepped(length: int) -> float:
    return float(-(-length // TEXT_STEP) * TEXT_STEP)


def sequence_tokens(work: Work, shape: ModelShape) -> int:
    """Tokens that the transformer sees beside the text: of the picture to make, and of those that were uploaded."""
    references = -(-work.reference_pixels // shape.pixels_per_token**2)
    return shape.tokens(work.height, work.width) + references + work.picture_tokens


def anchors(role: Role, shape: ModelShape) -> tuple[Row, ...]:
    """Jobs across the usual range, at which a prior's shape is held until observations say otherwise."""
    sides = (256, 512, 1024, 2048)
    if role is Role.ENCODER:
        sizes = (0, *(side * side for side in sides[1:]))
        return tuple(row(Work(role, text_tokens=n, image_pixels=px), shape) for n in (32, 512) for px in sizes)
    if role is Role.ENHANCER:
        return tuple(row(Work(role, text_tokens=tokens), shape) for tokens in (64, 256, 1024, 4096))
    return tuple(row(Work(role, height=side, width=side), shape) for side in sides)

"""Families whose split was held against the whole pipeline, bit for bit (docs/models.md, tests/engine/table.py)."""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)

TESTED_FAMILIES = frozenset(
    {
        "anima",
        "ernie-image",
        "flux",
        "flux-kontext",
        "flux2",
        "flux2-klein",
        "flux3",
        "flux3-distilled",
        "hunyuan-video-1.5",
        "ideogram4",
        "krea2",
        "ltx",
        "qwenimage",
        "qwenimage-edit",
        "qwenimage-edit-plus",
        "qwenimage21",
        "qwenimage21-turbo",
        "stable-diffusion-3",
        "stable-diffusion-xl",
        "wan",
        "wan-i2v",
        "z-image",
    }
)
"""By the ``model_name`` of their blocks."""

REMEMBERING = frozenset({"qwenimage21", "qwenimage21-turbo"})
"""Of these, whose loop keeps keys and values of the prompt from its first step on: their denoising does not move."""


def warn_of_untested(name: str, family: str) -> None:
    """In the log, of the model ``name``."""
    if family not in TESTED_FAMILIES:
        tested = ", ".join(sorted(TESTED_FAMILIES))
        _log.warning("%s is of the family %s, which is not among those tested: %s", name, family, tested)

"""Attention backends in the whole denoiser: what each saves and changes, where it can be used at all."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from diffusers.models.attention_dispatch import AttentionBackendName

from benchmarks.faster.drawing import PROMPTS, Drawing, compare, opened
from stage_server.engine.attention import NATIVE
from stage_server.engine.base import EngineError, LoadError
from stage_server.engine.diffusers_engine import DiffusersEngine
from wire.params import ImageParams
from wire.types import Role

_DOWNLOADED = "hub"
"""In the names of those that are."""


def measure(model: str, pictures: int, params: ImageParams) -> list[dict[str, Any]]:
    """A row for each that diffusers has and would not download, picture by picture in turns with the native one."""
    native = opened(model)
    drawing = Drawing(native, params, [PROMPTS[index % len(PROMPTS)] for index in range(pictures)])
    rows = []
    for name in [backend.value for backend in AttentionBackendName if _DOWNLOADED not in backend.value]:
        if name == NATIVE:
            continue
        try:
            engine = DiffusersEngine(model, attention_backend=name)
            engine.set_roles(frozenset({Role.DIT}))
            drawing.draw(0, engine=engine)  # the first is slow
            pairs = [(drawing.draw(index), drawing.draw(index, engine=engine)) for index in range(pictures)]
            row = {"backend": name, **asdict(compare(pairs))}
        except (LoadError, EngineError) as error:
            row = {"backend": name, "refused": str(error).rpartition("cannot be used: ")[2].split(". ")[0].rstrip(".")}
        rows.append(row)
        print(row, flush=True)
    return rows

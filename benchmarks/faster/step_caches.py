"""Every cache hook at several settings: what it saves, and how far its pictures are from the exact ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import msgspec
import torch

from benchmarks.faster.drawing import PROMPTS, Drawing, Drawn, compare, opened
from stage_server.engine.base import LoadError, StageJob, Unwatched
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.step_caches import CacheHook, parse
from wire.params import ImageParams
from wire.types import Role

SETTINGS: Mapping[CacheHook, tuple[str, ...]] = {
    CacheHook.FIRST_BLOCK: ("threshold=0.05", "threshold=0.1", "threshold=0.15", "threshold=0.2", "threshold=0.3"),
    CacheHook.MAG: ("threshold=0.03", "threshold=0.06", "threshold=0.12", "threshold=0.24"),
    CacheHook.TAYLOR: (
        "interval=2:order=0",
        "interval=2",
        "interval=2:warm-up=5",
        "interval=3",
        "interval=3:warm-up=5",
        "interval=2:order=2",
    ),
    CacheHook.PYRAMID: ("interval=2", "interval=3", "interval=2:start=0:end=1"),
    CacheHook.FASTER: ("interval=2",),
    CacheHook.SEA: ("threshold=0.25", "threshold=0.5", "threshold=1"),
}


def measure(model: str, pictures: int, params: ImageParams) -> list[dict[str, Any]]:
    """A row for each setting. Picture by picture all of them take turns, so what else the machine does falls on all."""
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(pictures)]
    texts, refused = _possible(model, list(_texts(_calibrated(model, params, prompts[0]))))
    engine = opened(model, step_caches={f"{number}": parse(text) for number, text in enumerate(texts)})
    drawing, computed = Drawing(engine, params, prompts), _Computed(engine)
    pairs: dict[str, list[tuple[Drawn, Drawn]]] = {text: [] for text in texts}
    counts: dict[str, list[tuple[float, float]]] = {text: [] for text in texts}
    for index in range(pictures):
        drawing.draw(index)  # the first of a size is slow
        computed.taken()
        exact, of = drawing.draw(index), computed.taken()
        for number, text in enumerate(texts):
            pairs[text].append((exact, drawing.draw(index, step_cache=f"{number}")))
            counts[text].append((of[0], computed.taken()[0]))
            counts[text].append((of[1], computed.last[1]))
        print(f"{index + 1} of {pictures} pictures", flush=True)
    return [*(_row(text, pairs[text], counts[text]) for text in texts), *refused]


def _possible(model: str, texts: list[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """Those that the model can have, and rows of the others."""
    possible, refused = [], []
    for text in texts:
        engine = DiffusersEngine(model, step_caches={"tried": parse(text)})
        try:
            engine.set_roles(frozenset({Role.DIT}))
            possible.append(text)
        except LoadError as error:
            refused.append({"cache": text, "refused": str(error).rpartition("with this model: ")[2]})
    return possible, refused


def _row(text: str, pairs: list[tuple[Drawn, Drawn]], counts: list[tuple[float, float]]) -> dict[str, Any]:
    shown, _, ratios = text.partition(":ratios=")
    shares = [sum(done for _, done in part) / sum(of for of, _ in part) for part in (counts[::2], counts[1::2])]
    told = {"ratios": ratios} if ratios else {}
    return {"cache": shown, **told, **asdict(compare(pairs)), "blocks": shares[0], "attention": shares[1]}


class _Computed:
    """Calls of a layer of the last block, and of one of its attention: what is left out calls neither."""

    def __init__(self, engine: DiffusersEngine) -> None:
        self.last = (0, 0)
        self._calls = [0, 0]
        block: Any = engine._pipeline.transformer.layers[-1]
        for index, layer in enumerate((block.feed_forward.w1, block.attention.to_q)):
            layer.register_forward_hook(lambda *_, index=index: self._count(index))

    def _count(self, index: int) -> None:
        self._calls[index] += 1

    def taken(self) -> tuple[int, int]:
        self.last = self._calls[0], self._calls[1]
        self._calls = [0, 0]
        return self.last


def _calibrated(model: str, params: ImageParams, prompt: str) -> str:
    return "/".join(f"{ratio:.4g}" for ratio in _ratios(opened(model), params, prompt))


def _texts(ratios: str) -> Iterator[str]:
    for hook, settings in SETTINGS.items():
        for setting in settings:
            yield f"{hook}:{setting}" + (f":ratios={ratios}" if hook is CacheHook.MAG else "")


def _ratios(engine: DiffusersEngine, params: ImageParams, prompt: str) -> list[float]:
    """MagCache's calibration: of each step, by how much what the blocks add is larger than in the step before."""
    layers: Any = engine._pipeline.transformer.layers
    given: list[torch.Tensor] = []
    added: list[torch.Tensor] = []
    hooks = (
        layers[0].register_forward_pre_hook(lambda _module, args: given.append(args[0])),
        layers[-1].register_forward_hook(lambda _module, _args, result: added.append(result - given[-1])),
    )
    job = msgspec.structs.replace(params, prompt=prompt, seed=2)
    encoded = engine.run(StageJob(Role.ENCODER, job), {}, Unwatched())
    engine.run(StageJob(Role.DIT, job), encoded[Role.DIT], Unwatched())
    for hook in hooks:
        hook.remove()
    norms = [residual.norm(dim=-1) for residual in added[:: len(added) // (params.num_inference_steps or 1)]]
    return [1.0] + [float((now / (before + 1e-8)).mean()) for before, now in pairwise(norms)]

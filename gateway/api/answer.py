"""The body and headers of a finished generation, built from bytes: pictures never become Python text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec
import pybase64

from gateway.api.errors import milliseconds
from gateway.api.generation import Generation
from gateway.api.usage import usage
from gateway.service.interfaces import UNCOUNTED, Finished, PromptRead, StageReport

_NOT_PLAIN = re.compile(r"[^A-Za-z0-9_.:/@-]")


Item = tuple[bytes, ...]
"""One JSON object of ``data``, in pieces: a picture is copied once, when the body is joined."""


def b64_items(images: Iterable[bytes]) -> list[Item]:
    return [(b'{"b64_json":"', pybase64.b64encode(image), b'"}') for image in images]


def url_items(urls: Iterable[str]) -> list[Item]:
    return [(msgspec.json.encode({"url": url}),) for url in urls]


def join(items: Sequence[Item], generation: Generation, created: int, prompt: PromptRead = UNCOUNTED) -> bytes:
    """OpenAI's ``ImagesResponse``, without the keys that have nothing to say."""
    fields: dict[str, object] = {
        "created": created,
        "background": "opaque",
        "output_format": generation.output_format,
        "size": str(generation.final_size),
    }
    if generation.quality:
        fields["quality"] = generation.quality
    if generation.safety_identifier:
        fields["safety_identifier"] = generation.safety_identifier
    if (used := usage(generation, prompt, len(items))) is not None:
        fields["usage"] = used
    pieces = [msgspec.json.encode(fields).removesuffix(b"}"), b',"data":[']
    said = b'{"revised_prompt":%b,' % msgspec.json.encode(prompt.revised) if prompt.revised else b"{"
    for first, *rest in items:
        pieces += (said + first.removeprefix(b"{"), *rest, b",")
    pieces[-1] = b"]}"  # in place of the last comma: a request has at least one picture
    return b"".join(pieces)


def headers(finished: Finished, generation: Generation, *, with_stages: bool) -> dict[str, str]:
    """What makes the same pictures again, how much of the prompt was read, the predicted wait, and what each stage
    took."""
    result = early_headers(generation)
    if finished.prompt.tokens:
        result["x-prompt-tokens"] = str(finished.prompt.tokens)
    if finished.prompt.dropped:
        result["x-prompt-truncated"] = str(finished.prompt.dropped)
    if finished.predicted_seconds > 0:
        result["x-predicted-wait-ms"] = milliseconds(finished.predicted_seconds)
    if with_stages and finished.stages:
        result["server-timing"] = ", ".join(map(_server_timing, finished.stages))
    return result


def early_headers(generation: Generation) -> dict[str, str]:
    """What is known before the work begins."""
    seeds = ",".join(str(image.seed) for image in generation.images)
    told = {"x-seed": str(generation.seed), "x-seeds": seeds, "x-batching": "exact" if generation.exact else "fast"}
    if level := generation.images[0].step_cache:
        told["x-step-cache"] = level
    return told


def _server_timing(stage: StageReport) -> str:
    """One stage job as entries of the standard header, for example ``dit.0.compute;dur=812.4;desc="gpu-1 steps=8"``."""
    name = stage.role if stage.image is None else f"{stage.role}.{stage.image}"
    notes = [_NOT_PLAIN.sub("_", stage.server)]
    notes += [f"steps={stage.steps}"] if stage.steps else []
    notes += [f"attempts={stage.attempts}"] if stage.attempts > 1 else []
    return ", ".join(
        (
            f"{name}.queue;dur={stage.queue_seconds * 1e3:.1f}",
            f"{name}.fetch;dur={stage.fetch_seconds * 1e3:.1f}",
            f'{name}.compute;dur={stage.compute_seconds * 1e3:.1f};desc="{" ".join(notes)}"',
            f"{name}.publish;dur={stage.publish_seconds * 1e3:.1f}",
        )
    )

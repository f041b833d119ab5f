"""What is asked for: kinds of requests and their weights."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from clients.api import Call, Upload

COMPACT = re.compile(r"(?P<weight>[0-9.]+):(?P<size>\d+x\d+)(/(?P<steps>\d+))?(?P<stream>\+stream)?")


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    call: Call
    weight: float = 1.0
    slo_seconds: float | None = None


def parse_kind(entry: dict[str, Any], base: dict[str, object], folder: Path) -> Kind:
    """``weight``, ``name`` and ``slo`` are for us; ``image`` (paths from ``folder``) and ``mask`` make it an edit; all
    else are fields of the request, atop of ``base``. Raises ``ValueError`` or ``OSError``."""
    rest = dict(entry)
    weight = float(rest.pop("weight", 1.0))
    if not weight > 0:
        raise ValueError(f"a weight must be above 0, not {weight:g}")
    name, slo = rest.pop("name", None), rest.pop("slo", None)
    paths, mask = rest.pop("image", []), rest.pop("mask", None)
    images = tuple(_upload(folder / path) for path in ([paths] if isinstance(paths, str) else paths))
    call = Call({**base, **rest}, images, _upload(folder / mask) if mask else None)
    if mask and not images:
        raise ValueError("a mask needs an image")
    return Kind(name or _name(call), call, weight, None if slo is None else float(slo))


def read_kinds(given: str, base: dict[str, object]) -> list[Kind]:
    """``WEIGHT:SIZE[/STEPS][+stream],…``, or a file: TOML with ``[[kind]]`` tables, or JSON with a list of objects.

    Raises ``ValueError`` that says what would be right, or ``OSError``.
    """
    path = Path(given)
    try:
        match path.suffix:
            case ".toml":
                entries = tomllib.loads(path.read_text(encoding="utf-8"))["kind"]
            case ".json":
                entries = json.loads(path.read_text(encoding="utf-8"))
            case _:
                return [_compact(part, base) for part in given.split(",")]
        kinds = [parse_kind(entry, base, path.parent) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        if path.suffix not in (".toml", ".json"):
            raise
        raise ValueError(f"{path}: no kinds of requests can be read from it ({error!r})") from error
    if not kinds:
        raise ValueError(f"{path}: there are no kinds of requests in it")
    return kinds


def _compact(part: str, base: dict[str, object]) -> Kind:
    found = COMPACT.fullmatch(part.strip())
    if found is None:
        raise ValueError(f"{part!r} is not WEIGHT:WIDTHxHEIGHT/STEPS, as in 0.5:512x512/20 or 0.5:512x512/20+stream")
    entry: dict[str, Any] = {"weight": found["weight"], "size": found["size"]}
    entry |= {"num_inference_steps": int(found["steps"])} if found["steps"] else {}
    entry |= {"stream": True, "partial_images": 1} if found["stream"] else {}
    return parse_kind(entry, base, Path())


def _name(call: Call) -> str:
    fields = call.fields
    steps = f"/{fields['num_inference_steps']}" if fields.get("num_inference_steps") else ""
    marks = ("+edit" if call.images else "") + ("+stream" if fields.get("stream") else "")
    return f"{fields.get('size') or 'auto'}{steps}{marks}"


@cache
def _upload(path: Path) -> Upload:
    return Upload.read(path)

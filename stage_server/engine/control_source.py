"""How operators name ControlNets and IP-Adapters, and where those lie."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from stage_server.engine.base import LoadError
from wire.params import MAX_CONTROLS_OFFERED, AdapterName

_HUB = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<folder>[\w./ -]+))?")
_FORM = "write NAME=FOLDER or NAME=ORG/REPOSITORY[@REVISION][:SUBFOLDER]"


@dataclass(frozen=True, slots=True)
class SteeringSources:
    """Name → folder, file or hub id."""

    controls: Mapping[str, str] = field(default_factory=dict)
    ip_adapters: Mapping[str, str] = field(default_factory=dict)
    image_encoder: str = ""
    """Folder or hub id; empty: that of the model."""


def named_controls(given: Iterable[str], option: str = "--control") -> dict[str, str]:
    """Name → source, from the options that name them. Raises ``LoadError``."""
    sources: dict[str, str] = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not equals or not source:
            raise LoadError(f"{option} {text!r}: {_FORM}")
        try:
            msgspec.convert(name, AdapterName)
        except msgspec.ValidationError as error:
            raise LoadError(
                f"{option} {name!r}: a name has up to 100 letters, digits, dots, dashes and underscores, and begins "
                "with a letter or digit"
            ) from error
        if name in sources:
            raise LoadError(f"{option} names {name} twice: {sources[name]} and {source}")
        sources[name] = source
    if len(sources) > MAX_CONTROLS_OFFERED:
        raise LoadError(f"{option} is given {len(sources)} times; a server allows {MAX_CONTROLS_OFFERED} at most")
    return sources


def place_of(name: str, source: str) -> tuple[str, str | None, str]:
    """Repository, revision and subfolder of a source that is no folder. Raises ``LoadError``."""
    found = _HUB.fullmatch(source)
    if found is None or source.startswith((".", "/", "~")):
        raise LoadError(f"control {name}: no ControlNet at {source!r}: neither a folder nor a hub id; {_FORM}")
    return found["repo"], found["revision"], found["folder"] or ""

"""Components that several models of one process have in common, as text encoders often are: on the device once.

They are equal by content: class, configuration, dtype and every byte of the weights. What an engine changes is left out
(``Components.shareable``).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from stage_server.engine.checkpoint import ComponentFiles

_log = logging.getLogger(__name__)

_INCIDENTAL = ("_name_or_path", "_diffusers_version", "transformers_version")
"""What configurations say beside what the component is."""


class Holder(NamedTuple):
    """A component of one engine."""

    engine: int
    name: str


class CommonComponents:
    """Those that are resident, and for whom. One for all engines of a process; from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._held: dict[str, tuple[Any, list[Holder]]] = {}
        """By key: the component, and its holders, the first of whom counts its bytes."""
        self._moving: defaultdict[str, Lock] = defaultdict(Lock)

    def moving(self, key: str | None) -> AbstractContextManager[object]:
        """While it comes, goes or is read ahead, for one engine at a time: what one begins to hold, no other is just
        giving up, and two never read the same at once. Nothing to wait for where there is no key.

        Who waits for it may have a turn at the device: it is had for longer only while nobody holds the component, and
        then nobody can be giving it up.
        """
        if key is None:
            return nullcontext()
        with self._lock:
            return self._moving[key]

    def is_held(self, key: str) -> bool:
        return key in self._held

    def take(self, key: str, by: Holder) -> Any | None:
        """What somebody holds; None: nobody does."""
        with self._lock:
            if key not in self._held:
                return None
            component, holders = self._held[key]
            holders.append(by)
            return component

    def hold(self, key: str, component: Any, by: Holder) -> None:
        """What nobody held, and ``by`` has loaded, while it was ``moving``."""
        with self._lock:
            self._held[key] = component, [by]

    def give_up(self, key: str, by: Holder) -> bool:
        """Whether nobody holds it any more."""
        with self._lock:
            _, holders = self._held[key]
            holders.remove(by)
            if not holders:
                del self._held[key]
            return not holders

    def counts_for(self, key: str, by: Holder) -> bool:
        """Whether its bytes are this holder's."""
        with self._lock:
            held = self._held.get(key)
            return held is None or held[1][0] == by


def common_keys(models: Sequence[Mapping[str, tuple[Hashable, ComponentFiles]]]) -> list[dict[str, str]]:
    """Of each model, component → key of those that another one has as well.

    ``models``: component → what it must have in common beside the weights (``kind_of``), and its files. Whole files are
    read only where kind and sizes are equal, and not where the hub's cache names them by their digest.
    """
    alike: defaultdict[tuple[Hashable, tuple[int, ...]], list[tuple[int, str, tuple[Path, ...]]]] = defaultdict(list)
    for number, components in enumerate(models):
        for name, (kind, files) in components.items():
            paths = files.weight_paths()
            if paths:
                alike[kind, tuple(path.stat().st_size for path in paths)].append((number, name, paths))
    equal: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for (kind, _), some in alike.items():
        for number, name, paths in some if _are_several(each[0] for each in some) else ():
            equal[_key(kind, paths)].append((number, name))
    found: list[dict[str, str]] = [{} for _ in models]
    for key, members in equal.items():
        for number, name in members if _are_several(each[0] for each in members) else ():
            found[number][name] = key
    return found


def kind_of(files: ComponentFiles, config: Mapping[str, Any], variant: str | None, dtype: str) -> Hashable:
    """Of a component that may be shared: all but its weights that makes it what it is."""
    said = {name: value for name, value in config.items() if name not in _INCIDENTAL}
    return (
        f"{files.type_hint.__module__}.{files.type_hint.__qualname__}",
        json.dumps(said, sort_keys=True),
        variant,
        dtype,
    )


def _are_several(numbers: Iterable[int]) -> bool:
    return len(set(numbers)) > 1


def _key(kind: Hashable, paths: Iterable[Path]) -> str:
    parts = hashlib.sha256(repr(kind).encode())
    for path in paths:
        parts.update(_digest(path).encode())
    return parts.hexdigest()[:32]


def _digest(path: Path) -> str:
    """SHA-256."""
    target = path.resolve()
    if target.parent.name == "blobs" and len(target.name) == 64:
        return target.name
    _log.info("reading %s, to see whether two models have it in common", path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

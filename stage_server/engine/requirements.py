"""Packages that blocks call and that are not installed, found before a job finds them.

diffusers imports what only some families need where it is there (``if is_ftfy_available(): import ftfy``), and a block
that calls it without it fails in the middle of a job. So the source of each block is followed: from its class to the
functions and names of its module that it uses, and theirs.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from diffusers.modular_pipelines import ModularPipelineBlocks

from stage_server.engine.base import LoadError
from stage_server.engine.split import walk


def missing_packages(blocks: Iterable[ModularPipelineBlocks]) -> dict[str, str]:
    """Package → the class of a block that needs it."""
    found: dict[str, str] = {}
    for block in (leaf for each in blocks for leaf in walk(each)):
        for kind in type(block).__mro__:
            module = sys.modules.get(kind.__module__)
            if module is not None and kind.__module__.startswith("diffusers."):
                for package in _source(module).missing(kind.__name__, module):
                    found.setdefault(package, type(block).__name__)
    return found


def refuse_missing_packages(cannot: str, blocks: Iterable[ModularPipelineBlocks]) -> None:
    """Raises ``LoadError``, which begins with ``cannot`` and says what to install."""
    missing = missing_packages(blocks)
    if missing:
        calls = " and ".join(f"{block} calls {package}" for package, block in sorted(missing.items()))
        verb = "is" if len(missing) == 1 else "are"
        raise LoadError(f"{cannot}: {calls}, which {verb} not installed; pip install {' '.join(sorted(missing))}")


@dataclass(frozen=True, slots=True)
class _Source:
    """What a module's source says."""

    uses: Mapping[str, frozenset[str]]
    """Function or class of the module → names that it mentions."""
    guarded: Mapping[str, str]
    """Name that is there if its package is → that package."""

    def missing(self, start: str, module: ModuleType) -> set[str]:
        """Packages that ``start`` comes to, and that are not there."""
        seen, waiting = set[str](), [start]
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += self.uses.get(name, ())
        return {self.guarded[name] for name in seen & self.guarded.keys() if not hasattr(module, name)}


@cache
def _source(module: ModuleType) -> _Source:
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, SyntaxError):  # no source, which says nothing
        return _Source({}, {})
    uses = {
        node.name: frozenset(part.id for part in ast.walk(node) if isinstance(part, ast.Name))
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    return _Source(uses, dict(_guarded(tree)))


def _guarded(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Name and package of each import that stands under a condition. One with an ``else`` says that it goes without."""
    for node in tree.body:
        for inner in node.body if isinstance(node, ast.If) and not node.orelse else ():
            if isinstance(inner, ast.Import):
                for alias in inner.names:
                    yield alias.asname or alias.name.partition(".")[0], alias.name.partition(".")[0]
            elif isinstance(inner, ast.ImportFrom) and inner.module and not inner.level:
                for alias in inner.names:
                    yield alias.asname or alias.name, inner.module.partition(".")[0]

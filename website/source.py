"""``docs/`` as the generator reads it. Links to files outside it become their names: the site has no such pages."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^```.*?^```[^\n]*$", re.DOTALL | re.MULTILINE)


def copy_documents(target: Path) -> None:
    """Copies everything below ``docs/`` to ``target``, which must not exist."""
    shutil.copytree(DOCS, target)
    for path in target.rglob("*.md"):
        within = path.relative_to(target)
        path.write_text(for_site(path.read_text(encoding="utf-8"), within.parent), encoding="utf-8")


def for_site(text: str, folder: Path) -> str:
    """``text`` of a page in ``folder``, relative to ``docs/``. Links that leave ``docs/`` become their text."""

    def replaced(match: re.Match[str]) -> str:
        shown, target = match[1], match[2]
        if re.match(r"\w+:", target) or not _leaves(folder, target):
            return match[0]
        return shown

    parts: list[str] = []
    end = 0
    for fence in _FENCE.finditer(text):
        parts += [_LINK.sub(replaced, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(replaced, text[end:])])


def links(text: str) -> Iterator[tuple[str, str]]:
    """Target and anchor (with its ``#``, or empty) of each relative link and picture outside code blocks."""
    without_code = _FENCE.sub("", text)
    for target, anchor in re.findall(r"\]\(([^)\s#]*)(#[^)\s]*)?\)", without_code):
        if not re.match(r"\w+:", target):
            yield target, anchor


def _leaves(folder: Path, target: str) -> bool:
    return os.path.normpath(folder / target).startswith("..")

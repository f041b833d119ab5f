"""The code blocks of every document, and what is to be done with each.

A comment on the line before a block says more about it:

- ``<!-- not run: why -->``: it is parsed, and its commands' options are looked up, but it is not run;
- ``<!-- serves -->``: each command is a server, which runs until the page is over;
- ``<!-- file: NAME -->``: it is written into the folder in which the page's other blocks run.

All other blocks of sh and Python are run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
_BLOCK = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    page: str
    """Its path from the root of the repository."""
    line: int
    language: str
    text: str
    mark: str
    """The comment before it, or nothing."""

    @property
    def is_run(self) -> bool:
        return self.language in ("sh", "python") and not self.mark.startswith("not run: ")

    @property
    def file(self) -> str:
        """The name under which it is to be saved, or nothing."""
        return self.mark.removeprefix("file: ") if self.mark.startswith("file: ") else ""

    def commands(self) -> list[str]:
        """The lines of a shell block, each with those that continue it, without comments."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [line for line in (re.sub(r"(^|\s)#( .*|$)", "", line).strip() for line in joined) if line]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def documents() -> list[Path]:
    found = [ROOT / name for name in TOP if (ROOT / name).exists()]
    return [*found, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    page = str(path.relative_to(ROOT))
    return [
        Block(page, text.count("\n", 0, found.start(2)) + 1, found[2], found[3], found[1] or "")
        for found in _BLOCK.finditer(text)
    ]


BLOCKS = [block for path in documents() for block in blocks_of(path)]

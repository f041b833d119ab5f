"""What classes say in their source alone: the text below each attribute, and comments that head a group of them."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Attribute:
    name: str
    type: str
    """As it is written."""
    default: str
    """As it is written; empty where there is none."""
    text: str
    """The docstring below it, on one line; or empty."""
    group: str
    """The comment that heads its paragraph, or those before; or empty."""


@cache
def attributes(cls: type) -> tuple[Attribute, ...]:
    """The annotated attributes of ``cls`` itself, in the order of its source, but for private ones and ClassVars."""
    source = textwrap.dedent(inspect.getsource(cls))
    [body] = [node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    lines = source.splitlines()
    found: list[Attribute] = []
    group = ""
    for node, following in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        group = _heading(lines, node.lineno) or group
        if node.target.id.startswith("_") or "ClassVar" in ast.unparse(node.annotation):
            continue
        default = ast.unparse(node.value) if node.value else ""
        found.append(Attribute(node.target.id, ast.unparse(node.annotation), default, _docstring(following), group))
    return tuple(found)


def one_line(text: str) -> str:
    """``text`` for a cell of a table: reST's double backquotes as Markdown's, no line breaks, no column marks."""
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def _docstring(node: ast.stmt | None) -> str:
    match node:
        case ast.Expr(ast.Constant(str(text))):
            return text
    return ""


def _heading(lines: list[str], number: int) -> str:
    """The comment above line ``number`` (from 1) that begins a paragraph."""
    above = lines[max(0, number - 3) : number - 1]
    if len(above) == 2 and not above[0].strip() and (comment := re.fullmatch(r"\s*# (.+)", above[1])):
        return comment[1]
    return ""

"""What a terminal can show: one line that is drawn again and again, and pictures."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Mapping
from enum import Enum, auto
from typing import TextIO

CLEAR = "\r\x1b[2K"
ROWS = 12
"""Height of a preview."""
KITTY_CHUNK = 4096
"""Bytes of base64 in one of kitty's escape sequences, at most."""


class Graphics(Enum):
    NONE = auto()
    ITERM = auto()
    KITTY = auto()


def is_live(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether lines can be drawn again there."""
    return stream.isatty() and environment.get("TERM") != "dumb"


def graphics(environment: Mapping[str, str]) -> Graphics:
    """Multiplexers swallow pictures, whichever terminal they run in."""
    program, term = environment.get("TERM_PROGRAM", ""), environment.get("TERM", "")
    if "TMUX" in environment or term.startswith(("screen", "tmux")):
        return Graphics.NONE
    if program in ("iTerm.app", "WezTerm"):
        return Graphics.ITERM
    if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty"):
        return Graphics.KITTY
    return Graphics.NONE


def inline(data: bytes, protocol: Graphics) -> str:
    """Escape sequences that show the picture; empty where this terminal cannot show it."""
    text = base64.b64encode(data).decode()
    if protocol is Graphics.ITERM:
        return f"\x1b]1337;File=inline=1;size={len(data)};height={ROWS}:{text}\a\n"
    if protocol is Graphics.KITTY and data.startswith(b"\x89PNG"):  # the only file format that kitty reads
        chunks = [text[start : start + KITTY_CHUNK] for start in range(0, len(text), KITTY_CHUNK)]
        heads = [f"a=T,f=100,q=2,r={ROWS},", *[""] * (len(chunks) - 1)]  # q=2: its answers would look like typing
        more = [1] * (len(chunks) - 1) + [0]
        parts = zip(heads, more, chunks, strict=True)
        return "".join(f"\x1b_G{head}m={rest};{chunk}\x1b\\" for head, rest, chunk in parts) + "\n"
    return ""


class StatusLine:
    """Draws nothing unless ``live``."""

    def __init__(self, stream: TextIO, *, live: bool) -> None:
        self._stream = stream
        self.live = live

    def show(self, text: str) -> None:
        if self.live:
            width = shutil.get_terminal_size().columns - 1  # a full line would wrap, and never be cleared
            self._write(CLEAR + text[:width])

    def clear(self) -> None:
        if self.live:
            self._write(CLEAR)

    def above(self, text: str) -> None:
        """What stays, where the line was."""
        if self.live:
            self._write(CLEAR + text)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

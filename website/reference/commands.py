"""``--help`` of every command and subcommand, as a person at a terminal sees it."""

from __future__ import annotations

import io
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress

from cli.__main__ import main
from cli.commands import COMMANDS

HEAD = """# Commands

What `--help` prints. Which command needs which packages: [one command](../commands.md).
"""
COLUMNS = 100
_POSITIONAL = re.compile(r"^positional arguments:\n(.*?)^(?=\S|\Z)", re.DOTALL | re.MULTILINE)
_SUBCOMMAND = re.compile(r"^ {4}([a-z]\S*)(?= {2}|\n)", re.MULTILINE)


def page() -> str:
    return "\n".join((HEAD, *_sections()))


def _sections() -> Iterator[str]:
    for name, command in COMMANDS.items():
        text = help_of(name)
        yield f"## disagfusion {name}\n\n{command.what[0].upper()}{command.what[1:]}.\n\n```text\n{text}```\n"
        for subcommand in _subcommands(text):
            yield f"### disagfusion {name} {subcommand}\n\n```text\n{help_of(name, subcommand)}```\n"


def help_of(*words: str) -> str:
    """What ``disagfusion WORDS --help`` prints."""
    with redirect_stdout(io.StringIO()) as output, _columns(), _own_signals(), suppress(SystemExit):
        main([*words, "--help"])
    return output.getvalue()


def _subcommands(text: str) -> list[str]:
    positional = _POSITIONAL.search(text)
    return _SUBCOMMAND.findall(positional[1]) if positional else []


@contextmanager
def _columns() -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(COLUMNS)
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


@contextmanager
def _own_signals() -> Iterator[None]:
    """``stage`` and ``profile`` take them over."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

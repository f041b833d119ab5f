"""``generate`` and ``edit`` make pictures, ``jobs`` and ``batch`` have them made, ``load`` measures a service."""

from __future__ import annotations

import os
import sys

from clients import batch, edit, generate, jobs
from clients.load import command as load
from clients.making import INTERRUPTED

COMMANDS = {"generate": generate.main, "edit": edit.main, "jobs": jobs.main, "batch": batch.main, "load": load.main}

PIPE_CLOSED = 141
"""What a shell sees of a program that SIGPIPE ended."""


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        print(f"usage: python -m clients {{{','.join(COMMANDS)}}} … (--help after a command explains it)")
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    return COMMANDS[argv[0]](argv[1:])


def _main() -> int:
    """``… | head`` ends us without a word. Not by SIGPIPE itself, which a broken connection would raise as well."""
    try:
        try:
            return main(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(_main())

"""``disagfusion``, or ``python -m cli``: runs one command. See ``--help``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module, metadata

from cli.commands import COMMANDS, Command

USAGE_ERROR = 2
INTERRUPTED = 130
PIPE_CLOSED = 141
"""What a shell sees of a program that SIGPIPE ended."""
OURS = frozenset({"cli", "clients", "fleet", "gateway", "scheduler", "stage_server", "wire"})


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command; 2 where there is no such command or its packages are not installed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            return _dispatch(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # `… | head` ends us without a word. Not by SIGPIPE itself, which a broken connection would raise as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED


def _dispatch(words: list[str]) -> int:
    match words:
        case []:
            sys.stderr.write(_usage())
            return USAGE_ERROR
        case ["-h" | "--help" | "help"]:
            sys.stdout.write(_usage())
            return 0
        case ["help", name]:
            return _dispatch([name, "--help"])
        case ["--version"]:
            sys.stdout.write(f"disagfusion {metadata.version('disagfusion')}\n")
            return 0
        case [name, *rest] if name in COMMANDS:
            return _run(name, COMMANDS[name], rest)
    nearest = get_close_matches(words[0], COMMANDS, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    sys.stderr.write(f"disagfusion: there is no command {words[0]!r}{hint} ('disagfusion --help' lists all)\n")
    return USAGE_ERROR


def _run(name: str, command: Command, rest: list[str]) -> int:
    if command.stops_with is not None:  # what is imported takes seconds, in which being told to end is no failure
        status = command.stops_with
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(status))
    try:
        function = getattr(import_module(command.module), command.function)
        return int(function([*command.before, *rest], program=command.program))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in OURS or not command.extra:
            raise
        sys.stderr.write(
            f'disagfusion {name} needs {missing}, which is not installed: pip install "disagfusion[{command.extra}]"\n'
        )
        return USAGE_ERROR


def _usage() -> str:
    lines = ["usage: disagfusion COMMAND …", "", "COMMAND --help explains each:", ""]
    lines += [f"  {name:10} {command.what}" for name, command in COMMANDS.items()]
    lines += ["", "disagfusion --version tells which this is. docs/commands.md says more."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

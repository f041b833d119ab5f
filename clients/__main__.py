"""``python -m clients generate …`` makes pictures, ``python -m clients load …`` measures a service under load."""

from __future__ import annotations

import sys

from clients import generate, load

COMMANDS = {"generate": generate.main, "load": load.main}


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        print(f"usage: python -m clients {{{','.join(COMMANDS)}}} … (--help after a command explains it)")
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    return COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

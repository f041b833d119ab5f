"""Makes pictures from a text."""

from __future__ import annotations

from clients import options
from clients.api import Call
from clients.making import make, watched


def main(argv: list[str], program: str = "python -m clients") -> int:
    args = options.parse(options.parser(f"{program} generate", __doc__), argv)
    return make(args, Call(options.fields(args, watched=watched())))

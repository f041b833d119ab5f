"""Makes pictures from a text."""

from __future__ import annotations

from clients import options
from clients.api import Call
from clients.making import make, watched


def main(argv: list[str]) -> int:
    args = options.parse(options.parser("generate", __doc__), argv)
    return make(args, Call(options.fields(args, watched=watched())))

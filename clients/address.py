"""Where the API is."""

from __future__ import annotations

import argparse
import os
from urllib.parse import urlsplit

ENVIRONMENT = "OPENAI_API_KEY is sent as the API key; OPENAI_BASE_URL is the default of --url."
"""Of every command's ``--help``."""

DEFAULT = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")


def add_url_option(parser: argparse.ArgumentParser) -> None:
    """``--url``: of one address at least."""
    text = "of the API; repeatable or comma-separated: the next is asked at connection errors and 503 "
    parser.add_argument("--url", action=_Urls, default=base_urls(DEFAULT), help=f"{text}(default: {DEFAULT})")


class _Urls(argparse.Action):
    """Those given take the default's place."""

    def __call__(
        self, _: argparse.ArgumentParser, found: argparse.Namespace, given: object, _option: str | None = None
    ) -> None:
        before = () if found.url is self.default else found.url
        found.url = (*before, *base_urls(str(given)))


def base_urls(given: str) -> tuple[str, ...]:
    return tuple(base_url(part.strip()) for part in given.split(",") if part.strip())


def base_url(given: str) -> str:
    """``given`` without a slash at its end, and with the API's path where it names only a host."""
    trimmed = given.rstrip("/")
    return trimmed if urlsplit(trimmed).path else f"{trimmed}/v1"

"""Where the API is."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

ENVIRONMENT = "OPENAI_API_KEY is sent as the API key; OPENAI_BASE_URL is the default of --url."
"""Of every command's ``--help``."""

DEFAULT = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")


def base_url(given: str) -> str:
    """``given`` without a slash at its end, and with the API's path where it names only a host."""
    trimmed = given.rstrip("/")
    return trimmed if urlsplit(trimmed).path else f"{trimmed}/v1"

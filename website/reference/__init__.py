"""Pages that are made from the code at every build, so that they cannot say anything else than it does."""

from __future__ import annotations

from collections.abc import Iterator

from website.reference import commands, http_api, messages, settings


def pages() -> Iterator[tuple[str, str]]:
    """File names below ``reference/``, and their text."""
    yield "http-api.md", http_api.page()
    yield "gateway-settings.md", settings.gateway_page()
    yield "stage-server-settings.md", settings.stage_server_page()
    yield "commands.md", commands.page()
    yield "messages.md", messages.page()

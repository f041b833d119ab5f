"""Ports for the processes that a benchmark starts."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Of loopback; nobody had it a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])

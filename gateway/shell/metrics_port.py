"""``/metrics`` at a port of its own: for networks where Prometheus may come, and clients may not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from gateway.api.metrics import MetricsAtPath, not_found


class _Server(uvicorn.Server):
    """Leaves signals to the API's server, which ends the process."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_metrics(listener: socket.socket, registry: CollectorRegistry, key: SecretStr | None) -> None:
    """Until cancelled."""
    app = MetricsAtPath(not_found, registry, key)
    config = uvicorn.Config(app, access_log=False, server_header=False, lifespan="off", log_config=None)
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="metrics server")
    try:
        await asyncio.shield(serving)
    finally:
        server.should_exit = True
        await serving

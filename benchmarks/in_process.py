"""HTTP without sockets: one connection of uvicorn's protocol, whose other end is here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState


class Connection:
    """Stays open, for one request at a time. To be made on a running event loop."""

    def __init__(self, app: ASGIApp, protocol: type[HttpToolsProtocol]) -> None:
        config = uvicorn.Config(app, http=protocol, access_log=False, log_config=None, lifespan="off")
        self._written: list[bytes] = []
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._protocol = protocol(config, ServerState(), {})
        over = self._protocol.on_response_complete

        def complete() -> None:
            over()
            self._answered.set_result(None)

        self._protocol.on_response_complete = complete  # type: ignore[method-assign] # nothing else tells when
        self._protocol.connection_made(_Wire(self._written))  # type: ignore[arg-type] # as uvicorn has it typed

    async def post(self, path: str, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bytes:
        """The body of the answer, which must be a 200."""
        self._answered = asyncio.get_running_loop().create_future()
        self._written.clear()
        lines = [b"POST %s HTTP/1.1" % path.encode(), b"host: here", b"content-length: %d" % len(body)]
        lines += [name + b": " + value for name, value in headers]
        self._protocol.data_received(b"\r\n".join((*lines, b"", body)))
        await self._answered
        head, _, answer = b"".join(self._written).partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(f"{head!r}: {answer[:500]!r}")
        return answer


class _Wire(asyncio.Transport):
    """To a client that takes all at once and never leaves."""

    def __init__(self, written: list[bytes]) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self._written = written

    def write(self, data: Any) -> None:
        self._written.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        pass

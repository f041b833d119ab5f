"""A TCP proxy whose connections are cut, slowed and held up as a test says; bytes are passed on as they are."""

from __future__ import annotations

import asyncio
from typing import Self

CHUNK_BYTES = 64 << 10
CONNECT_SECONDS = 5.0


class Proxy:
    """Forwards ``port`` to ``target`` on this machine, within its ``async with`` block."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self.delay = 0.0
        """Seconds that every chunk waits, either way."""
        self.is_refusing = False
        """New connections are closed at once."""
        self._passing = asyncio.Event()
        self._passing.set()
        self._links: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.gather(*self._links, return_exceptions=True)

    @property
    def links(self) -> int:
        return len(self._links)

    def cut(self) -> int:
        """Every connection, in the middle of whatever it carries; how many there were."""
        for link in self._links:
            link.cancel()
        return len(self._links)

    def hold(self) -> None:
        """Nothing passes, and nothing is closed, until ``let_go``: what a lost route looks like."""
        self._passing.clear()

    def let_go(self) -> None:
        self._passing.set()

    def heal(self) -> None:
        self.delay, self.is_refusing = 0.0, False
        self.let_go()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.create_task(self._link(reader, writer), name=f"link to {self.target}")
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            if self.is_refusing:
                return
            async with asyncio.timeout(CONNECT_SECONDS):
                there, back = await asyncio.open_connection("127.0.0.1", self.target)
            ends.append(back)
            await self._both_ways(reader, writer, there, back)
        except (OSError, TimeoutError):
            pass  # either side is gone: so is the other, below
        finally:
            for end in ends:
                end.transport.abort()

    async def _both_ways(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there: asyncio.StreamReader,
        back: asyncio.StreamWriter,
    ) -> None:
        """Until one side ends: both then."""
        ways = [asyncio.create_task(self._pass(reader, back)), asyncio.create_task(self._pass(there, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(CHUNK_BYTES):
            await self._passing.wait()
            if self.delay:
                await asyncio.sleep(self.delay)
            sink.write(data)
            await sink.drain()

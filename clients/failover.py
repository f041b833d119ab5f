"""Several addresses of one service: what meets a connection error or 503 at one goes to the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import httpx

REFUSED = 503

_UNREACHED = (httpx.ConnectError, httpx.ConnectTimeout)
"""Nothing was begun there, so that sending it again does nothing twice."""


class _Addresses:
    """``urls`` are base urls; requests are made for the first of them."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = urls
        self._good = 0
        """Index of the one that answered last."""

    def each(self, request: httpx.Request) -> Iterator[bool]:
        """Aims the request at one address after the other; whether that is the last. Those of others stay."""
        asked, first = str(request.url), self._urls[0]
        if not asked.startswith(f"{first}/"):
            yield True
            return
        count, begin = len(self._urls), self._good
        for turn in range(count):
            self._good = (begin + turn) % count
            request.url = httpx.URL(self._urls[self._good] + asked.removeprefix(first))
            request.headers["host"] = request.url.netloc.decode()
            yield turn == count - 1


class Failover(httpx.BaseTransport):
    def __init__(self, urls: Sequence[str], transport: httpx.BaseTransport) -> None:
        self._addresses = _Addresses(urls)
        self._transport = transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for is_last in self._addresses.each(request):
            try:
                answer = self._transport.handle_request(request)
            except _UNREACHED:
                if is_last:
                    raise
                continue
            if is_last or answer.status_code != REFUSED:
                return answer
            answer.close()
        raise AssertionError("the last address is the end")

    def close(self) -> None:
        self._transport.close()


class AsyncFailover(httpx.AsyncBaseTransport):
    def __init__(self, urls: Sequence[str], transport: httpx.AsyncBaseTransport) -> None:
        self._addresses = _Addresses(urls)
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        for is_last in self._addresses.each(request):
            try:
                answer = await self._transport.handle_async_request(request)
            except _UNREACHED:
                if is_last:
                    raise
                continue
            if is_last or answer.status_code != REFUSED:
                return answer
            await answer.aclose()
        raise AssertionError("the last address is the end")

    async def aclose(self) -> None:
        await self._transport.aclose()

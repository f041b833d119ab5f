"""One server's API for commands that ask it again and again: JSON in, JSON out; and a line of progress meanwhile."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx

from clients import terminal
from clients.address import ENVIRONMENT, add_url_option
from clients.api import key_headers, refusal
from clients.events import Malformed, Refused
from clients.failover import Failover
from clients.making import INTERRUPTED, complaint
from clients.terminal import StatusLine

FIRST_POLL_SECONDS, LAST_POLL_SECONDS = 0.2, 3.0
"""The longer something takes, the less often it is asked for."""
RETRIES = 30
"""Of a question that the server, or the way to it, failed to answer in a row: it may be restarting."""
RETRIED = (429, 500, 502, 503, 504)


class Service:
    def __init__(
        self, urls: Sequence[str], timeout_seconds: float, pause: Callable[[float], None] = time.sleep
    ) -> None:
        """``urls``: base urls of the API, at least one."""
        self._url = urls[0]
        transport = Failover(urls, httpx.HTTPTransport()) if len(urls) > 1 else None
        self._client = httpx.Client(timeout=timeout_seconds, transport=transport)
        self._pause = pause

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def call(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        """Raises ``Refused``, ``Malformed`` or ``httpx.HTTPError``."""
        answer = self._client.request(method, f"{self._url}{path}", headers=key_headers(), **more)
        if not answer.is_success:
            raise refusal(answer)
        try:
            fields = answer.json()
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise Malformed(f"an answer that is no JSON object: {answer.text[:80]!r}")
        return fields

    def pages(self, path: str) -> Iterator[dict[str, Any]]:
        """All items of a list, page by page."""
        after: dict[str, str] = {}
        while True:
            page = self.call("GET", path, params={"limit": "100", **after})
            yield from page["data"]
            if not page.get("has_more"):
                return
            after = {"after": page["last_id"]}

    def lines(self, path: str) -> Iterator[dict[str, Any]]:
        """Of a file of JSON lines."""
        with self._client.stream("GET", f"{self._url}{path}", headers=key_headers()) as answer:
            if not answer.is_success:
                answer.read()
                raise refusal(answer)
            rest = b""
            for chunk in answer.iter_bytes():  # not iter_lines, which also splits at U+2028, which JSON may hold
                *ends, rest = (rest + chunk).split(b"\n") if b"\n" in chunk else (rest + chunk,)
                yield from map(json.loads, ends)
            if rest.strip():
                yield json.loads(rest)

    def fetch(self, url: str) -> bytes:
        """A picture, which needs no key."""
        return self._client.get(url).raise_for_status().content

    def watch(self, path: str, is_over: Callable[[dict[str, Any]], bool]) -> Iterator[dict[str, Any]]:
        """What is there, again and again, until it ``is_over``; a server that restarts meanwhile is waited for."""
        pause, failures = FIRST_POLL_SECONDS, 0
        while True:
            try:
                found = self.call("GET", path)
            except (Refused, httpx.TransportError) as error:
                failures += 1
                if failures > RETRIES or (isinstance(error, Refused) and error.status not in RETRIED):
                    raise
            else:
                failures = 0
                yield found
                if is_over(found):
                    return
            self._pause(pause)
            pause = min(pause * 1.5, LAST_POLL_SECONDS)


def add_service_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = ENVIRONMENT
    add_url_option(parser)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one answer")


def run(args: argparse.Namespace, command: Callable[[argparse.Namespace, Service, StatusLine], int]) -> int:
    """The exit status."""
    line = StatusLine(sys.stderr, live=terminal.is_live(sys.stderr, os.environ))
    try:
        with Service(args.url, args.timeout) as service:
            return command(args, service, line)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (Refused, Malformed, httpx.HTTPError, OSError) as error:
        line.clear()
        print(complaint(error, args), file=sys.stderr)
        return 1

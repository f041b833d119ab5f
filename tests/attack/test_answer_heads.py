"""The heads of answers are uvicorn's to the byte, and what it refuses is refused."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway.api.http_protocol import Cycle

NAMES = st.sampled_from(
    [b"content-length", b"Content-Type", b"connection", b"Transfer-Encoding", b"x-seed", b"X-Seed", b"bad name", b"a:b"]
)
VALUES = st.sampled_from([b"7", b"close", b"Close, upgrade", b"keep-alive", b"chunked", b"CHUNKED", b"a b", b"a\r\nb"])
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=5)


async def told(kind: type[RequestResponseCycle], method: str, keep_alive: bool, start: Any) -> tuple[Any, ...]:
    """What is written, and what is settled by it."""
    written: list[bytes] = []
    wire: Any = SimpleNamespace(write=written.append)
    cycle = RequestResponseCycle(
        scope={"method": method},  # type: ignore[typeddict-item] # all that it reads
        transport=wire,
        flow=FlowControl(wire),
        logger=None,  # type: ignore[arg-type] # nothing to say
        access_logger=None,  # type: ignore[arg-type]
        access_log=False,
        default_headers=[(b"server", b"x")],
        message_event=asyncio.Event(),
        expect_100_continue=True,
        keep_alive=keep_alive,
        on_response=lambda: None,
    )
    cycle.__class__ = kind
    with suppress(RuntimeError, ValueError):
        await cycle.send(start)
    framed = (cycle.chunked_encoding, cycle.expected_content_length, cycle.keep_alive)
    return b"".join(written), *(framed if written else ()), cycle.response_started, cycle.waiting_for_100_continue


@given(st.sampled_from([200, 204, 304, 404, 429]), st.sampled_from(["GET", "HEAD", "POST"]), st.booleans(), HEADERS)
def test_heads_are_those_of_uvicorn(status: int, method: str, keep_alive: bool, headers: list[Any]) -> None:
    start = {"type": "http.response.start", "status": status, "headers": headers}
    ours, theirs = (asyncio.run(told(kind, method, keep_alive, start)) for kind in (Cycle, RequestResponseCycle))
    assert ours == theirs


@pytest.mark.parametrize("header", [(b"x-seed", b"1\r\nset-cookie: a=b"), (b"x:", b"1")])
def test_nothing_slips_into_a_head(header: tuple[bytes, bytes]) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": [(b"x-seeds", b"1"), header]}
    assert asyncio.run(told(Cycle, "GET", True, start))[0] == b""

"""What a caller says of a request's place among others reaches the service."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

URL = "/v1/images/generations"


@pytest.mark.parametrize(("headers", "meant"), [({}, 0), ({"x-priority": "3"}, 3), ({"X-Priority": "-10"}, -10)])
async def test_priority(service: Any, client: httpx.AsyncClient, headers: dict[str, str], meant: int) -> None:
    answer = await client.post(URL, json={"prompt": "a"}, headers=headers)
    assert (answer.status_code, service.requests[0].priority) == (200, meant)


async def test_a_priority_out_of_range(service: Any, client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, json={"prompt": "a"}, headers={"x-priority": "11"})
    assert (answer.status_code, answer.json()["error"]["code"], service.requests) == (400, "invalid_value", [])


@pytest.mark.parametrize(
    ("fields", "exact"),
    [
        ({}, False),
        ({"seed": 0}, True),
        ({"seed": -1}, False),
        ({"seed": 0, "batching": "fast"}, False),
        ({"batching": "exact"}, True),
        ({"batching": None, "seed": 7}, True),
    ],
)
async def test_exact_or_fast(service: Any, client: httpx.AsyncClient, fields: dict[str, object], exact: bool) -> None:
    answer = await client.post(URL, json={"prompt": "a"} | fields)
    assert [request.exact for request in service.requests] == [exact]
    assert answer.headers["x-batching"] == ("exact" if exact else "fast")

"""An attempt is held against the gateway that failed it."""

from __future__ import annotations

from functools import partial

import httpx

from tests.chaos.asking import Asker, Wish
from tests.chaos.invariants import complaints
from tests.chaos.record import Asked, End

URLS = ["http://127.0.0.1:8000", "http://127.0.0.1:8001"]
WISH = Wish(1, (64, 64), 1, 4, 7, "key-1")


async def test_a_picture_of_an_answer_that_another_gateway_made_is_fetched_from_that() -> None:
    """The answer for a key is what the gateway said that made it; with no public url its pictures are named there."""

    def answered(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            raise httpx.ConnectError("All connection attempts failed", request=request)
        return httpx.Response(200, json={"data": [{"url": f"{URLS[0]}/v1/images/files/a.png"}]})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answered)) as http:
        asker = Asker(http, URLS, iter((10.0, 18.0)).__next__)
        made, _ = await asker.attempt(1, partial(asker.by_url, WISH))
    assert (made.gateway, made.end) == (0, End.UNREACHED)
    asked = [Asked(1, "url", "key-1", [made], is_over=True)]
    assert complaints(asked, {0: [(17.0, 19.0)]}) == []
    assert len(complaints(asked, {1: [(17.0, 19.0)]})) == 1

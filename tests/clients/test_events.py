"""Bytes of a stream in, news out."""

from __future__ import annotations

import pytest

from clients.events import Admitted, Completed, EventReader, Malformed, News, Partial, Refused, Step, Waiting
from tests.clients.conftest import B64, PICTURE, completed, event

STREAM = (
    b": admitted, predicted 1.23 s\n\n: keep-alive\n\n: waiting, 7 ahead, about 12.3 s left\n\n: image 1 step 3/12\n\n"
    + event("image_generation.partial_image", b64_json=B64, image_index=1, partial_image_index=0)
    + completed(image_index=1, seed=8)
)
NEWS = [Admitted(1.23), Waiting(7, 12.3), Step(1, 3, 12), Partial(1, PICTURE), Completed(1, PICTURE, 8)]


def read(*chunks: bytes) -> list[News]:
    reader = EventReader()
    return [news for chunk in chunks for news in reader.feed(chunk)]


@pytest.mark.parametrize("size", [1, 7, len(STREAM)])
def test_chunks_may_end_anywhere(size: int) -> None:
    assert read(*(STREAM[start : start + size] for start in range(0, len(STREAM), size))) == NEWS


def test_other_servers_frames_are_read() -> None:
    assert read(STREAM.replace(b"\n", b"\r\n") + b"data: [DONE]\r\n\r\n") == NEWS
    assert read(event("something.new"), completed(), completed()) == [Completed(0, PICTURE), Completed(1, PICTURE)]
    assert read(b'data: {"type": "image_edit.completed",\ndata: "b64_json": "%b"}\n\n' % B64.encode()) == [
        Completed(0, PICTURE)
    ]


def test_an_error_event_ends_it_in_the_servers_words() -> None:
    with pytest.raises(Refused, match="No \u2028 memory") as raised:
        read('event: error\ndata: {"error": {"message": "No \u2028 memory", "code": "out_of_memory"}}\n\n'.encode())
    assert (raised.value.code, raised.value.status) == ("out_of_memory", 200)


@pytest.mark.parametrize(
    "data", [b"{", b"[1]", b'{"type": "x.completed"}', b'{"type": "x.completed", "b64_json": "%"}'], ids=str
)
def test_what_cannot_be_read_is_named(data: bytes) -> None:
    with pytest.raises(Malformed, match=r"no JSON|no picture in b64_json"):
        read(b"data: " + data + b"\n\n")

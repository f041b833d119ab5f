"""The file of a batch, in whatever chunks it comes."""

from __future__ import annotations

import json
from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.jobs import batch_lines
from gateway.jobs.batch_lines import LineReader, TooMuch, read_line

URL = "/v1/images/generations"


def line(custom_id: str) -> bytes:
    body = {"prompt": "ü\n"}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": URL, "body": body}).encode()


@given(
    ids=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=5),
        min_size=1,
        max_size=6,
        unique=True,
    ),
    cuts=st.lists(st.integers(0, 900), max_size=6),
    separator=st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
    ends=st.booleans(),
)
def test_every_line_is_found_where_it_lies(ids, cuts, separator, ends):
    data = separator.join(map(line, ids)) + (separator if ends else b"")
    places = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    reader = LineReader(URL)
    found = [place for start, end in pairwise(places) for place in reader.feed(data[start:end])]
    found += reader.end()
    assert reader.errors == []
    assert [place.custom_id for place in found] == ids
    for place in found:
        assert read_line(data[place.begins : place.begins + place.length]).custom_id == place.custom_id


def test_a_byte_order_mark_is_no_part_of_the_first_line():
    data = b"\xef\xbb\xbf" + line("first") + b"\n" + line("second")
    reader = LineReader(URL)
    first, second = [*reader.feed(data), *reader.end()]
    assert (first.custom_id, second.custom_id, reader.errors) == ("first", "second", [])
    assert read_line(data[first.begins : first.begins + first.length]).custom_id == "first"
    assert read_line(data[second.begins : second.begins + second.length]).custom_id == "second"


@pytest.mark.parametrize(
    ("body", "model"), [('{"model": "a"}', "a"), ("{}", None), ('{"model": 7}', None), ("3", None)]
)
def test_the_model_that_a_line_names(body, model):
    text = f'{{"custom_id": "a", "method": "POST", "url": "{URL}", "body": {body}}}'
    reader = LineReader(URL)
    (place,) = [*reader.feed(text.encode()), *reader.end()]
    assert place.model == model


def test_there_is_an_end_to_lines_and_to_errors(monkeypatch):
    monkeypatch.setattr(batch_lines, "MAX_LINES", 3)
    with pytest.raises(TooMuch, match="3 requests"):
        list(LineReader(URL).feed(b"\n".join(line(str(number)) for number in range(5))))
    monkeypatch.setattr(batch_lines, "MAX_LINE_BYTES", 1000)
    reader = LineReader(URL)
    with pytest.raises(TooMuch, match="1000 bytes"):
        list(chain.from_iterable(reader.feed(b"x" * 100) for _ in range(20)))
    reader = LineReader(URL)
    with pytest.raises(TooMuch, match="more errors"):
        list(reader.feed(b"{\n" * 99))
    assert [error.line for error in reader.errors] == list(range(1, batch_lines.MAX_ERRORS + 1))

"""What the person at the terminal reads once the gateway serves."""

from __future__ import annotations

from gateway.__main__ import example

URL = "http://127.0.0.1:8000"


def test_the_example_is_a_request_that_can_be_pasted():
    text = example(URL, keys=False)
    assert text.startswith(f"Ready at {URL}.")
    assert f"curl {URL}/v1/images/generations -H 'content-type: application/json' -d '{{" in text
    assert "authorization" not in text


def test_where_a_key_is_needed_the_example_asks_for_the_readers_own():
    assert '-H "authorization: Bearer $OPENAI_API_KEY" -d' in example(URL, keys=True)

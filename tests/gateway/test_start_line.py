"""What the person at the terminal reads once the gateway serves."""

from __future__ import annotations

import pytest

from gateway.__main__ import _settings, example, page_line

URL = "http://127.0.0.1:8000"


def test_the_example_is_a_request_that_can_be_pasted():
    text = example(URL, keys=False)
    assert text.startswith(f"Ready at {URL}.")
    assert f"curl {URL}/v1/images/generations -H 'content-type: application/json' -d '{{" in text
    assert "authorization" not in text


def test_where_a_key_is_needed_the_example_asks_for_the_readers_own():
    assert '-H "authorization: Bearer $OPENAI_API_KEY" -d' in example(URL, keys=True)


def test_the_local_gateway_makes_an_admin_key_and_says_it_beside_the_page():
    (settings, key), (_, other) = _settings({}, local=True), _settings({}, local=True)
    assert settings.admin_key is not None
    assert settings.admin_key.get_secret_value() == key
    assert len(key) >= 16
    assert key != other
    text = page_line(URL, key)
    assert f"{URL}/ " in text  # an address to click, without the key
    assert text.endswith(key)


@pytest.mark.parametrize("variable", [("DISAGFUSION_ADMIN_KEY", "0123456789abcdef"), ("DISAGFUSION_PAGE", "off")])
def test_no_admin_key_is_made_where_there_is_one_or_no_page(monkeypatch, variable):
    monkeypatch.setenv(*variable)
    settings, key = _settings({}, local=True)
    assert key == ""
    assert (settings.admin_key is None) == (variable[0] == "DISAGFUSION_PAGE")


def test_a_gateway_that_is_not_local_makes_no_key():
    settings, key = _settings({}, local=False)
    assert (settings.admin_key, key) == (None, "")

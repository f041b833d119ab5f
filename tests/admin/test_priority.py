"""The header ``x-priority``: bounded, whole, and passed on."""

from __future__ import annotations

import pytest

from gateway.api.errors import ApiError
from gateway.api.priority import priority


@pytest.mark.parametrize(("text", "meant"), [("0", 0), ("10", 10), ("-10", -10), ("+3", 3), (" 7 ", 7)])
def test_whole_numbers_in_range(text: str, meant: int) -> None:
    assert priority({"x-priority": text}) == meant


def test_none_sent() -> None:
    assert priority({}) == 0


@pytest.mark.parametrize("text", ["11", "-11", "1.5", "", "high", "--1", "+-1", "1_0", "\u0663", "9" * 5000])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ApiError, match="Invalid header 'x-priority': expected a whole number from -10 to 10") as caught:
        priority({"x-priority": text})
    assert (caught.value.status, caught.value.code, len(caught.value.message) < 200) == (400, "invalid_value", True)

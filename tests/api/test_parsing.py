"""Whatever arrives as a body is either a valid body or an ``ApiError``; sizes are either a rule's or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.errors import ApiError
from gateway.api.parsing import parse
from gateway.api.schema import NOT_SERVED, GenerationBody
from gateway.api.sizes import Size, SizeRules

Result = TypeVar("Result")
RULES = SizeRules(default=Size(64, 64), multiple=16, max_pixels=512 * 512, max_aspect=3.0)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from([*sorted(GenerationBody.field_names()), *sorted(NOT_SERVED), "foo"])


def attempt(call: Callable[[], Result]) -> Result | ApiError:
    try:
        return call()
    except ApiError as error:
        return error


@settings(max_examples=150)
@given(st.dictionaries(FIELDS, VALUES, max_size=4))
def test_any_object(fields):
    outcome = attempt(lambda: parse(GenerationBody, json.dumps({"prompt": "x", **fields}).encode()))
    if isinstance(outcome, ApiError):
        assert outcome.status == 400
        assert outcome.code
        assert outcome.param is None or outcome.param.split(".")[0] in fields
    else:
        assert outcome.prompt


@settings(max_examples=100)
@given(st.binary(max_size=64))
def test_any_bytes(raw):
    with pytest.raises(ApiError):
        parse(GenerationBody, raw)


@settings(max_examples=150)
@given(st.one_of(st.none(), st.text(max_size=9), st.from_regex(r"\A[0-9]{1,4}x[0-9]{1,4}\Z")))
def test_any_size(text):
    outcome = attempt(lambda: RULES.choose(text, None, None))
    if isinstance(outcome, ApiError):
        assert (outcome.code, outcome.param) == ("invalid_value", "size")
    else:
        assert outcome.width % 16 == outcome.height % 16 == 0
        assert outcome.width * outcome.height <= 512 * 512
        assert text in (None, "auto", str(outcome))


@pytest.mark.parametrize(
    ("size", "nearest"),
    [("8x16", "16x16"), ("65x64", "64x64 or 80x64"), ("1x1", "16x16"), ("100x99", "96x96 or 112x112")],
)
def test_the_nearest_sizes(size, nearest):
    with pytest.raises(ApiError, match=f"the nearest: {nearest}\\.$"):
        RULES.choose(size, None, None)

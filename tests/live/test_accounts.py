"""Limits, budgets, moderation and idempotency keys, for keys that ``python -m gateway keys create`` made."""

from __future__ import annotations

import uuid

import httpx
import openai
import pytest

from tests.live.conftest import BLOCKED_WORD, arguments
from tests.live.test_refusals import told

pytestmark = pytest.mark.services


@pytest.fixture
def connect_as(connect, service):
    """OpenAI's client, retries and all, with a new key of such limits; and what it sent."""

    def open_client(*limits: str) -> tuple[openai.OpenAI, list[httpx.Request]]:
        key, sent = service.new_key("live", *limits), []
        http = httpx.Client(event_hooks={"request": [sent.append]})
        return connect(api_key=key, max_retries=2, http_client=http), sent

    return open_client


def test_t33_a_caller_over_its_limit(connect_as):
    sdk, sent = connect_as("--images-per-minute", "1")
    sdk.images.generate(**arguments())
    with pytest.raises(openai.RateLimitError) as over:
        sdk.with_options(max_retries=0).images.generate(**arguments())
    assert told(over.value) == (429, "rate_limit_error", "rate_limit_exceeded", None)
    headers = over.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 60
    assert int(headers["retry-after-ms"]) == 1000 * int(headers["retry-after"])
    assert len(sent) == 2


def test_t37_a_used_up_budget_is_asked_for_once(connect_as):
    sdk, sent = connect_as("--device-seconds-per-month", "0.001")
    sdk.images.generate(**arguments())
    sent.clear()
    with pytest.raises(openai.RateLimitError) as over:
        sdk.images.generate(**arguments())
    assert told(over.value) == (429, "insufficient_quota", "insufficient_quota", None)
    assert over.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in over.value.response.headers
    assert len(sent) == 1


def test_t38_what_the_hook_blocks(sdk, service):
    with pytest.raises(openai.BadRequestError) as blocked:
        sdk.images.generate(**arguments(prompt=f"a {BLOCKED_WORD} circle"))
    assert told(blocked.value) == (400, "image_generation_user_error", "moderation_blocked", None)
    assert BLOCKED_WORD not in service.log("gateway").read_text()


def test_t52_an_idempotency_key(sdk):
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first, again = (sdk.images.generate(**arguments(), extra_headers=key) for _ in range(2))
    assert first == again, "without a seed, another generation would be another picture"
    with pytest.raises(openai.ConflictError) as other:
        sdk.images.generate(**arguments(prompt="a blue square"), extra_headers=key)
    assert other.value.response.headers["x-should-retry"] == "false"

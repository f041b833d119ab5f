"""Models by name, and requests that can be followed through every process."""

from __future__ import annotations

import re
import secrets

import openai
import pytest

from tests.live.conftest import arguments, until
from tests.live.test_refusals import told
from tests.picture_service import MODEL, SEVERAL

pytestmark = pytest.mark.services


def test_t50_models(sdk, http):
    assert {model.id for model in sdk.models.list()} == {MODEL, SEVERAL, "gpt-image-1", "dall-e-3", "org/tiny"}
    assert sdk.models.retrieve(MODEL).object == "model"
    assert sdk.models.retrieve("org/tiny").id == "org/tiny"  # sent as org%2Ftiny
    assert http.get("/v1/models/org/tiny").json() == http.get("/v1/models/org%2Ftiny").json()
    with pytest.raises(openai.NotFoundError) as unknown:
        sdk.models.retrieve("org/nobody")
    assert told(unknown.value)[2] == "model_not_found"


def test_t51_the_clients_trace_reaches_every_stage(sdk, service):
    trace, parent = secrets.token_hex(16), secrets.token_hex(8)
    prompt = f"a picture nobody asked for before, {trace}"  # or a kept encoding would spare the encoder
    sdk.images.generate(
        **arguments(model=MODEL, prompt=prompt), extra_headers={"traceparent": f"00-{trace}-{parent}-01"}
    )
    for name in ("gateway", "encoder", "dit", "decoder"):
        until(lambda name=name: f'"trace_id": "0x{trace}"' in service.log(name).read_text(), f"a span of {name}")


def test_t51_request_ids_are_unique_and_logged(sdk, service):
    ids = [sdk.images.generate(**arguments(model=MODEL))._request_id for _ in range(2)]
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.images.generate(**arguments(foo=1))
    refused = bad.value.request_id
    assert refused == bad.value.response.headers["x-request-id"]
    assert len({*ids, refused}) == 3
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", name) for name in (*ids, refused))
    until(lambda: all(name in service.log("gateway").read_text() for name in (*ids, refused)), "lines of the gateway")
    until(lambda: all(name in service.log("dit").read_text() for name in ids), "lines of the dit")

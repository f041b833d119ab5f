from __future__ import annotations

import base64
import json

from gateway.api import answer
from gateway.api.generation import plan
from gateway.api.schema import GenerationBody
from gateway.service.interfaces import Finished
from gateway.settings import Settings
from wire.params import ModelInfo

MODEL = ModelInfo(name="m", key="m@1", family="fake", dtype="float32", default_size=(64, 32))
BODY = GenerationBody(prompt="x", quality="low", safety_identifier='a "quoted" ü', seed=9, n=2)
GENERATION = plan(BODY, MODEL, Settings())


def test_joined_bytes_are_the_json_they_stand_for():
    images = [bytes(range(256)), b"\x00"]
    body = json.loads(answer.join(answer.b64_items(images), GENERATION, created=17))
    assert body == {
        "created": 17,
        "background": "opaque",
        "output_format": "png",
        "size": "64x32",
        "quality": "low",
        "safety_identifier": 'a "quoted" ü',
        "data": [{"b64_json": base64.b64encode(image).decode()} for image in images],
    }


def test_urls():
    body = json.loads(answer.join(answer.url_items(["http://x/1.png"]), GENERATION, created=17))
    assert body["data"] == [{"url": "http://x/1.png"}]


def test_headers_say_only_what_is_known():
    assert answer.headers(Finished((b"",), ()), GENERATION, with_stages=True) == {
        "x-seed": "9",
        "x-seeds": "9,10",
        "x-batching": "exact",
    }

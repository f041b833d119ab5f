"""Intermediate pictures of the bundled model through ``python -m gateway --local`` and the official SDK."""

from __future__ import annotations

import base64
import io

import numpy as np
import openai
import pytest
from PIL import Image

pytestmark = pytest.mark.services

PROMPT = "a large red circle in the center on a white background"


def pixels(b64_json: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json))).convert("RGB"), dtype=float)


@pytest.fixture
def client(local_url):
    options = {"api_key": "none", "max_retries": 0, "_strict_response_validation": True}
    with openai.OpenAI(base_url=f"{local_url}/v1", **options) as client:
        yield client


def test_each_partial_picture_is_closer_to_the_finished_one(client):
    asked = {"model": "tiny-shapes", "prompt": PROMPT, "size": "256x256", "extra_body": {"seed": 7, "steps": 12}}
    events = list(client.images.generate(**asked, stream=True, partial_images=3))
    assert [event.type.partition(".")[2] for event in events] == [*["partial_image"] * 3, "completed"]
    assert [event.partial_image_index for event in events[:-1]] == [0, 1, 2]
    *partials, final = [pixels(event.b64_json) for event in events]
    distances = [float(np.abs(partial - final).mean()) for partial in partials]
    assert distances == sorted(distances, reverse=True)
    assert min(distances) > 0, "none is a copy of the finished one"
    alone = client.images.generate(**asked)
    assert (pixels(alone.data[0].b64_json) == final).all(), "asking for partial pictures changes nothing"
    assert alone.data[0].b64_json == events[-1].b64_json


def test_pictures_of_one_stream_have_partial_pictures_of_their_own(client):
    events = list(
        client.images.generate(
            model="tiny-shapes",
            prompt=PROMPT,
            n=2,
            size="256x256",
            stream=True,
            partial_images=1,
            extra_body={"seed": 7},
        )
    )
    done = {event.model_extra["image_index"]: pixels(event.b64_json) for event in events if "completed" in event.type}
    assert set(done) == {0, 1}
    for event in events:
        if "partial" in event.type:
            own = event.model_extra["image_index"]
            near, far = (float(np.abs(pixels(event.b64_json) - done[image]).mean()) for image in (own, 1 - own))
            assert near < far

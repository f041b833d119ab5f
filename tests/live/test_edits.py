"""Pictures from pictures."""

from __future__ import annotations

import json

import openai
import pytest
from openai.types import ImagesResponse

from tests.contract.test_edits import data_url, png
from tests.live.conftest import SIDE
from tests.live.test_generations import opened
from tests.live.test_refusals import told
from tests.picture_service import MODEL, SEVERAL

pytestmark = pytest.mark.services

RED, BLUE = png(SIDE, SIDE, colour="red"), png(SIDE, SIDE, colour="blue")
MASK = png(SIDE, SIDE, mode="RGBA")
WHOLE = {"strength": 1.0}
"""All of the few steps."""


def edit(sdk, image=RED, model: str = MODEL, **fields) -> ImagesResponse:
    return sdk.images.edit(image=image, model=model, prompt="a blue circle", **fields)


def edit_json(sdk, **body) -> ImagesResponse:
    """OpenAI's client has no parameter for it, but sends and reads it."""
    return sdk.post("/images/edits", body={"model": MODEL, "prompt": "a blue circle", **body}, cast_to=ImagesResponse)


def is_drawn(answer: ImagesResponse, count: int = 1) -> None:
    assert [opened(item.b64_json).size for item in answer.data] == [(SIDE, SIDE)] * count
    assert answer.size == f"{SIDE}x{SIDE}"


def test_t46_one_picture(sdk):
    is_drawn(edit(sdk, extra_body=WHOLE))
    is_drawn(edit(sdk, [("a.png", RED, "image/png")], n=2, extra_body=WHOLE), 2)


def test_t46_a_mask(sdk):
    is_drawn(edit(sdk, mask=MASK))


def test_t46_several_pictures(sdk):
    """In their order: another order makes another picture."""
    there, back, one = (
        edit(sdk, images, SEVERAL, extra_body={"seed": 1}) for images in ([RED, BLUE], [BLUE, RED], [RED])
    )
    for answer in (there, back, one):
        is_drawn(answer)
    assert len({answer.data[0].b64_json for answer in (there, back, one)}) == 3


def test_t46_a_model_for_one_picture_says_so(sdk):
    with pytest.raises(
        openai.BadRequestError, match=r"cannot take 2 pictures\. It can: text2image, image2image"
    ) as bad:
        edit(sdk, [RED, BLUE])
    assert told(bad.value) == (400, "invalid_request_error", "unsupported_value", "image")


def test_t46_a_data_url(sdk):
    whole = {"seed": 1, **WHOLE}
    by_url = edit_json(sdk, images=[{"image_url": data_url(RED)}], **whole)
    is_drawn(by_url)
    assert by_url.data == edit(sdk, extra_body=whole).data
    is_drawn(edit_json(sdk, images=[{"image_url": data_url(RED)}], mask={"image_url": data_url(MASK)}))


def test_t46_a_file(sdk):
    file = sdk.files.create(file=("red.png", RED), purpose="vision")
    is_drawn(edit_json(sdk, images=[{"file_id": file.id}], **WHOLE))
    assert sdk.files.delete(file.id).deleted


def test_t46_t39_a_stream(sdk):
    events = list(edit(sdk, stream=True, partial_images=2, extra_body={"steps": 8, "strength": 1.0}))
    assert {event.type for event in events[:-1]} <= {"image_edit.partial_image"}
    assert events[-1].type == "image_edit.completed"


@pytest.mark.parametrize(
    ("image", "fields", "kind", "code", "param"),
    [
        ([RED] * 17, {"model": SEVERAL}, "invalid_request_error", "invalid_value", "image"),
        (b"no picture", {}, "image_generation_user_error", "invalid_image", "image"),
        (RED, {"mask": png(SIDE, 2 * SIDE, mode="RGBA")}, "image_generation_user_error", "invalid_image", "mask"),
    ],
    ids=["seventeen", "text", "mask"],
)
def test_t47_pictures_that_are_refused(sdk, image, fields, kind, code, param):
    with pytest.raises(openai.BadRequestError) as bad:
        edit(sdk, image, **fields)
    assert told(bad.value) == (400, kind, code, param)


@pytest.mark.parametrize(
    ("images", "code", "param"),
    [
        ([], "missing_required_parameter", "image"),
        ([{"image_url": data_url(RED), "file_id": "file-1"}], "invalid_value", "images.0"),
    ],
    ids=["none", "both"],
)
def test_t47_references_that_are_refused(sdk, images, code, param):
    with pytest.raises(openai.BadRequestError) as bad:
        edit_json(sdk, images=images)
    assert told(bad.value) == (400, "invalid_request_error", code, param)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/a.png",
        "http://localhost:{port}/a.png",
        "http://[::ffff:127.0.0.1]:{port}/a.png",
        "http://2130706433:{port}/a.png",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
    ],
)
def test_t48_private_links_are_not_followed(sdk, trap, url):
    """Redirects to them: ``tests/services/test_links.py``."""
    with pytest.raises(openai.BadRequestError) as bad:
        edit_json(sdk, images=[{"image_url": url.format(port=trap.port)}])
    assert told(bad.value)[2:] == ("invalid_image_url", "image")
    assert trap.visits == []


def test_t49_a_picture_is_known_by_its_bytes(sdk, http):
    is_drawn(edit(sdk, RED, extra_body=WHOLE))  # as ``upload``, of the type application/octet-stream
    files = {"image": ("upload", RED, "application/octet-stream")}
    answer = http.post("/v1/images/edits", data={"prompt": "x", **{k: str(v) for k, v in WHOLE.items()}}, files=files)
    assert answer.status_code == 200, answer.text
    assert json.loads(answer.text)["size"] == f"{SIDE}x{SIDE}"

"""How much work uploaded pictures make. That it is the work that is done: tests/engine/test_predicted_work.py."""

from __future__ import annotations

import struct

import msgspec
import pytest

from gateway.service import graph
from gateway.service.references import PictureWork, picture_work
from scheduler.cost.features import row, sequence_tokens
from scheduler.cost.profile import ModelShape
from scheduler.cost.work import Work
from wire.params import ImageParams, Workflow
from wire.references import References, png_size
from wire.to_stage import InputRef
from wire.types import Handle, Role

ANSWER = (64, 96)
SHAPE = ModelShape("m", pixels_per_token=16, text_tokens=256)


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + b"\x08\x02\x00\x00\x00"


def workflow(references: References | None) -> Workflow:
    return Workflow("edit", ("prompt", "image"), references=references)


@pytest.mark.parametrize(
    ("rule", "picture", "size"),
    [
        (References(), (300, 200), ANSWER),
        (References(area=1 << 20, multiple=32), (300, 200), (1248, 832)),
        (References(area=1 << 20, multiple=32), (4, 4000), (32, 32384)),
        (References(max_area=1 << 20, multiple=16), (300, 200), (288, 192)),
        (References(max_area=1 << 20, multiple=16), (3, 2), (16, 16)),
        (References(max_area=1 << 20, multiple=16), (4096, 1024), (2048, 512)),
        (References(sizes=((672, 1568), (1024, 1024), (1568, 672)), multiple=16), (90, 100), (1024, 1024)),
        (References(sizes=((672, 1568), (1024, 1024), (1568, 672)), multiple=16), (1, 9), (1024, 1024)),
        (References(sizes=((672, 1568), (1024, 1024), (1568, 672)), multiple=16), (900, 200), (1568, 672)),
    ],
)
def test_the_size_at_which_a_picture_is_encoded(
    rule: References, picture: tuple[int, int], size: tuple[int, int]
) -> None:
    assert rule.size(picture, ANSWER) == size


def test_pictures_count_at_their_own_sizes_and_in_the_sequence_and_the_prompt() -> None:
    rule = References(max_area=1 << 20, multiple=16, in_sequence=True, prompt_area=384 * 384)
    found = picture_work(workflow(rule), [png(160, 320), png(64, 64)], ANSWER)
    assert found == PictureWork(160 * 320 + 64 * 64, 160 * 320 + 64 * 64, 10 * 19 + 14 * 14)


def test_without_a_rule_or_a_size_they_count_at_the_size_of_the_answer() -> None:
    """Stage servers of an older version send no rule."""
    assert picture_work(workflow(None), [png(160, 320), None, b"GIF89a"], ANSWER) == PictureWork(3 * 64 * 96)
    area = References(area=1 << 20, multiple=32)
    assert picture_work(workflow(area), [b"\x89PNG"], (512, 512)).encoded_pixels == 1 << 20


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", png(0, 9), png(9, 0), b"x" * 40])
def test_what_is_no_png_has_no_size(data: bytes) -> None:
    assert png_size(data) is None


def test_jobs_carry_it(request_for, model):
    rule = References(area=1 << 20, multiple=32, in_sequence=True, prompt_area=1 << 20)
    info = msgspec.structs.replace(model(), workflows=(workflow(rule),))
    images = (ImageParams(workflow="edit", width=64, height=96),)
    uploads = {"image": png(64, 64), "image_1": png(300, 200), "mask_image": png(64, 64)}
    refs = {name: InputRef(handle=Handle(name), endpoint="tcp://127.0.0.1:1") for name in uploads}
    request = request_for(images=images, uploads=uploads)
    jobs = {job.role: job.work for job in graph.build(request, info, 1.0, refs).spec.jobs}
    pixels, tokens = (1 << 20) + 1248 * 832, 37 * 37 + 45 * 30
    assert (jobs[Role.ENCODER].image_pixels, jobs[Role.ENCODER].picture_tokens) == (pixels, tokens)
    assert row(jobs[Role.ENCODER], SHAPE) == (1.0, float(-(-(256 + tokens) // 16) * 16), float(pixels))
    assert (jobs[Role.DIT].reference_pixels, jobs[Role.DIT].picture_tokens) == (pixels, tokens)
    assert sequence_tokens(jobs[Role.DIT], SHAPE) == 4 * 6 + pixels // 256 + tokens
    assert jobs[Role.DECODER] == Work(Role.DECODER, height=96, width=64)


def test_a_rule_is_optional_on_the_wire() -> None:
    plain, ruled = workflow(None), workflow(References(area=9, multiple=3))
    assert b"references" not in msgspec.json.encode(plain)
    assert msgspec.json.decode(msgspec.json.encode(ruled), type=Workflow) == ruled

    class OldWorkflow(msgspec.Struct):
        name: str
        inputs: tuple[str, ...]

    assert msgspec.json.decode(msgspec.json.encode(ruled), type=OldWorkflow).name == "edit"

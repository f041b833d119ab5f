"""``upscale``: who may ask for it, and what is said of the two sizes that such a picture has."""

from __future__ import annotations

import json

import msgspec
import pytest
from pydantic import ValidationError

from gateway.api import answer
from gateway.api.abilities import abilities
from gateway.api.errors import ApiError
from gateway.api.generation import plan
from gateway.api.job_posting import most_bytes
from gateway.api.metadata import describe
from gateway.api.schema import GenerationBody
from gateway.settings import Settings
from wire.params import ModelInfo, Upscaler

WITHOUT = ModelInfo(name="m", key="m@1", family="fake", dtype="float32", default_size=(64, 32))
MODEL = msgspec.structs.replace(WITHOUT, upscaler=Upscaler("swin", "ab12", 4))
BODY = GenerationBody(prompt="x", upscale=4)


def refused(body: GenerationBody, model: ModelInfo = MODEL, settings: Settings | None = None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        plan(body, model, settings or Settings())
    assert (caught.value.status, caught.value.param) == (400, "upscale")
    return caught.value


def test_the_answer_has_the_finished_size_and_the_model_is_asked_for_the_smaller():
    generation = plan(BODY, MODEL, Settings())
    (params,) = generation.images
    assert (params.width, params.height, params.upscale) == (64, 32, 4)
    assert json.loads(answer.join(answer.b64_items([b""]), generation, created=1))["size"] == "256x128"
    assert "Size: 64x32, Postprocess upscale by: 4" in describe(generation, 0, with_prompt=False)
    assert most_bytes(generation) > 2 * most_bytes(plan(GenerationBody(prompt="x"), MODEL, Settings()))


def test_who_asks_for_nothing_gets_nothing():
    generation = plan(GenerationBody(prompt="x"), MODEL, Settings())
    assert (generation.images[0].upscale, generation.final_size) == (0, generation.size)
    assert "upscale" not in describe(generation, 0, with_prompt=False)


def test_a_model_without_the_stage_says_how_it_would_have_one():
    error = refused(BODY, WITHOUT)
    assert error.code == "unsupported_parameter"
    assert "'m' has no stage 'upscaler' here" in str(error)
    assert "--role upscaler --upscaler FOLDER_OR_HUB_ID" in str(error)


def test_another_factor_names_the_one_that_there_is():
    assert "so it may be 4, not 2" in str(refused(GenerationBody(prompt="x", upscale=2)))


def test_a_picture_that_would_be_too_large_is_refused_before_it_is_made():
    error = refused(BODY, settings=Settings(max_upscaled_pixels=10_000))
    assert "64x32 becomes 32768 pixels, of which 10000 are allowed" in str(error)


@pytest.mark.parametrize("factor", [0, 1, 9, "2", 2.5])
def test_factors_that_none_could_have(factor):
    with pytest.raises(ValidationError):
        GenerationBody.model_validate({"prompt": "x", "upscale": factor})


def test_forms_are_told_the_factor():
    assert abilities(MODEL, Settings())["upscale"] == 4
    assert abilities(WITHOUT, Settings())["upscale"] is None

"""``enhance``: who may ask for it, and what the answer says of the prompt."""

from __future__ import annotations

import json

import msgspec
import pytest

from gateway.api import answer
from gateway.api.abilities import abilities
from gateway.api.errors import ApiError
from gateway.api.generation import plan
from gateway.api.job_answer import JobAnswer
from gateway.api.metadata import describe
from gateway.api.schema import GenerationBody
from gateway.api.streaming import Events
from gateway.service.interfaces import PromptRead, Ready
from gateway.settings import Settings
from wire.params import Enhancer, ModelInfo

WITHOUT = ModelInfo(name="m", key="m@1", family="fake", dtype="float32", default_size=(64, 32))
MODEL = msgspec.structs.replace(WITHOUT, enhancer=Enhancer("writer", "ab12", 64))
BODY = GenerationBody(prompt="x", enhance=True)
READ = PromptRead(5, 0, 'a "crimson" disc')


def test_a_model_without_the_stage_says_how_it_would_have_one():
    with pytest.raises(ApiError) as refused:
        plan(BODY, WITHOUT, Settings())
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, "enhance", "unsupported_parameter")
    assert "'m' has no stage 'enhancer' here" in str(refused.value)
    assert "--role enhancer --enhancer FOLDER_OR_HUB_ID" in str(refused.value)


@pytest.mark.parametrize("asked", [None, False])
def test_who_asks_for_nothing_gets_nothing(asked):
    assert not plan(GenerationBody(prompt="x", enhance=asked), WITHOUT, Settings()).enhance


def test_every_picture_of_the_answer_says_what_it_was_made_of():
    generation = plan(BODY, MODEL, Settings())
    assert generation.enhance
    for items, name in ((answer.b64_items([b"1", b"2"]), "b64_json"), (answer.url_items(["u", "v"]), "url")):
        told = json.loads(answer.join(items, generation, 1, READ))["data"]
        assert [each["revised_prompt"] for each in told] == [READ.revised] * 2
        assert all(each[name] for each in told)
    assert "revised_prompt" not in json.loads(answer.join(answer.b64_items([b"1"]), generation, 1))["data"][0]


def test_so_does_the_event_of_a_stream():
    events = Events(plan(BODY, MODEL, Settings()))
    (frame,) = events.frames(Ready(0, b"1", READ))
    data = json.loads(frame.split(b"data: ")[1])
    assert (data["revised_prompt"], data["b64_json"]) == (READ.revised, "MQ==")


def test_a_job_keeps_it_and_answers_of_older_gateways_have_none():
    kept = JobAnswer(plan(BODY, MODEL, Settings()), 1, READ, {}, (1,))
    encoded = msgspec.json.encode(kept)
    assert msgspec.json.decode(encoded, type=JobAnswer) == kept
    older = json.loads(encoded)
    del older["prompt"]["revised"], older["generation"]["enhance"]
    read = msgspec.json.decode(json.dumps(older), type=JobAnswer)
    assert (read.prompt.revised, read.generation.enhance) == ("", False)


def test_the_file_names_the_prompt_that_was_drawn():
    generation = plan(BODY, MODEL, Settings())
    assert describe(generation, 0, with_prompt=True, revised="a disc").startswith("a disc\n")
    assert describe(generation, 0, with_prompt=True).startswith("x\n")


def test_forms_are_told_of_it():
    assert abilities(MODEL, Settings())["enhance"] is True
    assert abilities(WITHOUT, Settings())["enhance"] is False

"""A stage before the encoder, which only some requests pass through: emulated engines, real processes, real signals."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest

from scheduler import events as ev
from stage_server.engine.emulated_values import REWRITTEN, prompt_digest
from tests.chaos.pictures import read
from tests.engine.enhancer_folder import save_enhancer
from tests.integration.further_stages import BODY, asked, server_with, started
from wire.types import Role

X, E, T, D, U = Role

ENHANCER = """
[enhancer]
fixed_seconds = 0.4
seconds_per_token = 0.0
weights_gb = 0.001
activation_gb = 0.001
load_seconds = 0.01
batch_marginal = [[0, 1.0]]
"""
PROMPT = BODY["prompt"]


@pytest.fixture
def settings(settings):
    """Encodings are kept, and texts with them."""
    return settings.model_copy(update={"embedding_cache_bytes": 1 << 20})


@pytest.fixture
def serve(service, tmp_path):
    return server_with(service, tmp_path, ENHANCER)


def counts(service):
    return {role: len(service.tape.runs(role)) for role in Role}


def drawn(answer):
    """The digest of the prompt that the picture was made of, and what is said of that."""
    assert answer.status_code == 200, answer.text
    (picture,) = answer.json()["data"]
    return read(base64.b64decode(picture["b64_json"])).digest, picture.get("revised_prompt")


async def test_pictures_are_made_of_what_the_enhancer_wrote(service, http, serve):
    """What it wrote is kept, and what the encoder made of that is kept under it: no prompt gets another's encoding."""
    await asyncio.gather(service.serve("model", E, T, D), serve("writer", X))
    await service.tape.find(ev.RolesWarm, lambda event: event.server.startswith("model"))  # its store's size is known
    revised = PROMPT + REWRITTEN

    assert drawn(await asked(http)) == (prompt_digest(PROMPT), None)
    assert counts(service) == {X: 0, E: 1, T: 1, D: 1, U: 0}

    answer = await asked(http, enhance=True)
    assert drawn(answer) == (prompt_digest(revised), revised)
    assert "enhancer.compute" in answer.headers["server-timing"]
    assert answer.headers["x-prompt-tokens"] == str(len(revised.split()))
    assert counts(service) == {X: 1, E: 2, T: 2, D: 2, U: 0}

    again, of_both = await asked(http, enhance=True), await asked(http, prompt=revised)
    assert (drawn(again), drawn(of_both)) == (drawn(answer), (prompt_digest(revised), None))
    assert drawn(await asked(http)) == (prompt_digest(PROMPT), None)
    assert counts(service) == {X: 1, E: 2, T: 5, D: 5, U: 0}


async def test_a_stream_says_what_its_pictures_are_made_of(service, http, serve):
    await asyncio.gather(service.serve("model", E, T, D), serve("writer", X))
    answer = await asked(http, enhance=True, stream=True)
    *_, last = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    assert json.loads(last.removeprefix("data: "))["revised_prompt"] == PROMPT + REWRITTEN


async def test_without_the_stage_the_answer_says_which_is_missing(service, http):
    await service.serve("model", E, T, D)
    answer = await asked(http, enhance=True)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("enhance", "unsupported_parameter")
    assert service.tape.runs(E) == []


@pytest.mark.services
async def test_another_server_takes_over_and_nothing_else_is_repeated(service, http, serve):
    await asyncio.gather(service.serve("model", E, T, D), serve("first", X), serve("second", X))
    answer = asked(http, enhance=True)
    victim = await started(service, X)
    service.server_of(victim.server).kill()
    assert drawn(await answer)[1] == PROMPT + REWRITTEN
    assert counts(service) == {X: 2, E: 1, T: 1, D: 1, U: 0}


@pytest.mark.services
async def test_its_words_outlive_its_server(service, http, serve):
    await asyncio.gather(service.serve("model", E, T, D), serve("writer", X))
    answer = asked(http, enhance=True)
    await started(service, E)
    service.servers["writer"].kill()
    assert drawn(await answer) == (prompt_digest(PROMPT + REWRITTEN), PROMPT + REWRITTEN)
    assert counts(service) == {X: 1, E: 1, T: 1, D: 1, U: 0}


@pytest.mark.services
async def test_real_servers_draw_what_the_rewritten_prompt_alone_would_have_drawn(service, http, tmp_path):
    folder = save_enhancer(tmp_path / "tiny-enhancer")
    options = ("--enhancer", str(folder), "--enhancer-tokens", "12")
    await asyncio.gather(
        service.serve("model", E, T, D, model="tiny-shapes"),
        service.serve("writer", X, model="tiny-shapes", options=options),
    )
    body = {"model": "tiny-shapes", "size": "64x96", "prompt": "a red circle"}
    enhanced = await asked(http, **body, enhance=True)
    (picture,) = enhanced.json()["data"]
    assert picture["revised_prompt"] not in ("", body["prompt"])
    plain = await asked(http, **body | {"prompt": picture["revised_prompt"]})
    assert plain.json()["data"][0]["b64_json"] == picture["b64_json"]

"""A fourth stage, which only some requests pass through: emulated engines, real processes, real signals."""

from __future__ import annotations

import asyncio
import base64
import io

import numpy as np
import pytest
from PIL import Image

from scheduler import events as ev
from tests.engine.upscaler_folder import by_transformers_alone, save_upscaler
from tests.integration.further_stages import BODY, asked, server_with, started
from wire.references import png_size
from wire.types import Role

X, E, T, D, U = Role

UPSCALER = """
[upscaler]
fixed_seconds = 0.4
seconds_per_pixel = 0.0
factor = 2
weights_gb = 0.001
activation_gb = 0.001
load_seconds = 0.01
batch_marginal = [[0, 1.0]]
"""


@pytest.fixture
def serve(service, tmp_path):
    return server_with(service, tmp_path, UPSCALER)


def counts(service):
    return {role: len(service.tape.runs(role)) for role in (E, T, D, U)}


def picture_size(answer):
    assert answer.status_code == 200, answer.text
    return png_size(base64.b64decode(answer.json()["data"][0]["b64_json"]))


def opened(answer):
    return Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))


async def test_a_picture_that_asks_for_it_goes_through_the_fourth_stage(service, http, serve):
    """Servers of one model with and without an upscaler work together."""
    await asyncio.gather(service.serve("model", E, T, D), serve("larger", U))

    plain = await asked(http)
    assert (plain.json()["size"], picture_size(plain)) == ("64x48", (64, 48))
    assert counts(service) == {E: 1, T: 1, D: 1, U: 0}
    assert service.gateway.dispatcher.status()["slow"]["roles"] == {E: 1, T: 1, D: 1, U: 1}

    answer, again = await asked(http, upscale=2), await asked(http, upscale=2)
    assert (answer.json()["size"], picture_size(answer)) == ("128x96", (128, 96))
    assert counts(service) == {E: 3, T: 3, D: 3, U: 2}
    assert "upscaler.0.compute" in answer.headers["server-timing"]
    assert answer.json()["data"] == again.json()["data"]
    await service.all_stores_empty()


async def test_without_the_stage_the_answer_says_which_is_missing(service, http):
    await service.serve("model", E, T, D)
    answer = await asked(http, upscale=2)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("upscale", "unsupported_parameter")
    assert "has no stage 'upscaler' here" in error["message"]
    assert "--role upscaler --upscaler" in error["message"]
    assert service.tape.runs(E) == []


@pytest.mark.services
async def test_another_server_takes_over_and_nothing_else_is_repeated(service, http, serve):
    await asyncio.gather(service.serve("model", E, T, D), serve("first", U), serve("second", U))
    answer = asked(http, upscale=2)
    victim = await started(service, U)
    service.server_of(victim.server).kill()
    assert picture_size(await answer) == (128, 96)
    assert counts(service) == {E: 1, T: 1, D: 1, U: 2}
    await service.all_stores_empty()


@pytest.mark.services
async def test_pixels_that_died_with_their_server_are_decoded_again_and_not_denoised(service, http, serve):
    await asyncio.gather(service.serve("model", E, T), service.serve("decoder", D), serve("only", U))
    answer = asked(http, upscale=2)
    await started(service, U)
    for name in ("only", "decoder"):
        service.servers[name].kill()
        await service.tape.find(ev.ServerLost, lambda event, name=name: event.server.startswith(name))
    await asyncio.gather(service.serve("decoder", D), serve("only", U))
    assert picture_size(await answer) == (128, 96)
    assert counts(service) == {E: 1, T: 1, D: 2, U: 2}
    await service.all_stores_empty()


@pytest.mark.services
async def test_without_a_replacement_the_deadline_brings_a_clean_503(service, http, serve):
    await asyncio.gather(service.serve("model", E, T, D), serve("only", U))
    answer = asyncio.create_task(
        http.post("/v1/images/generations", json=BODY | {"upscale": 2}, headers={"x-request-timeout": "4"})
    )
    await started(service, U)
    service.servers["only"].kill()
    response = await answer
    assert response.status_code == 503, response.text
    assert "upscaler" in response.json()["error"]["message"]
    await service.all_stores_empty()


@pytest.mark.services
async def test_real_servers_make_what_transformers_alone_makes_of_the_plain_picture(service, http, tmp_path):
    folder = save_upscaler(tmp_path / "tiny-upscaler")
    options = ("--upscaler", str(folder))
    await asyncio.gather(
        service.serve("model", E, T, D, model="tiny-shapes"),
        service.serve("larger", U, model="tiny-shapes", options=options),
    )
    body = {"model": "tiny-shapes", "size": "64x96"}
    plain, larger = await asked(http, **body), await asked(http, **body, upscale=2)
    assert larger.json()["size"] == "128x192"
    expected = by_transformers_alone(folder, opened(plain))
    assert np.array_equal(np.asarray(opened(larger)), expected)
    assert [stage.split(".")[0] for stage in larger.headers["server-timing"].split(", ")[::4]] == [E, T, D, U]

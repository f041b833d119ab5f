"""The guider of a request: forms of the field, what each guider takes, and what the model does."""

from __future__ import annotations

import json

import msgspec
import pytest

from tests.contract.conftest import MODELS
from tests.contract.test_edits import PNG
from wire.guiders import GuiderUse

URL, EDITS = "/v1/images/generations", "/v1/images/edits"
GUIDED = {"guiders": ("cfg", "apg", "pag", "cfg_zero_star"), "guided_layers": 6}

PAG = GuiderUse(name="pag", scale=3.0, layers=(1, 2))


@pytest.fixture(autouse=True)
def guided(service) -> None:
    service.served = tuple(
        msgspec.structs.replace(model, **GUIDED) if model.name in ("tiny", "editor") else model for model in MODELS
    )


@pytest.mark.parametrize(
    ("sent", "used", "exact"),
    [
        (None, None, False),
        ("apg", GuiderUse(name="apg"), False),
        ({"name": "cfg", "stop": 0.5, "rescale": 0.7}, GuiderUse(name="cfg", stop=0.5, rescale=0.7), False),
        ({"name": "pag", "scale": 3, "layers": [1, 2]}, PAG, True),
    ],
)  # fmt: skip
async def test_what_is_asked_for_reaches_the_service(client, service, sent, used, exact):
    """One that changes layers is computed alone, and what is computed alone is exact."""
    body = {"prompt": "x", "guidance_scale": 3.0, "batching": "fast", "guider": sent}
    response = await client.post(URL, json=body)
    assert response.status_code == 200, response.text
    (request,) = service.requests
    assert [image.guider for image in request.images] == [used]
    assert request.exact is exact


@pytest.mark.parametrize("text", ["pag", '{"name": "pag", "scale": 3, "layers": [1, 2]}', "", "null"])
async def test_a_form_has_a_name_or_a_json_text(client, service, text):
    data = {"model": "editor", "prompt": "x", "guidance_scale": "3", "guider": text}
    response = await client.post(EDITS, data=data, files=[("image", ("a.png", PNG))])
    assert response.status_code == 200, response.text
    wanted = {"pag": GuiderUse(name="pag")}.get(text, PAG if text.startswith("{") else None)
    assert service.requests[0].images[0].guider == wanted


@pytest.mark.parametrize(
    ("fields", "code", "param", "words"),
    [
        ({"guider": "pga"}, "invalid_value", "guider", "there is no guider 'pga'; there are cfg, "),
        ({"guider": "slg"}, "invalid_value", "guider", "takes no guider 'slg'; it takes cfg, apg, pag, "),
        ({"guider": {"name": "cfg", "scale": 2}}, "invalid_value", "guider.scale", "'cfg' takes no 'scale'; it takes"),
        ({"guider": {"name": "pag", "scale": 101}}, "invalid_value", "guider.scale", "from 0 to 100, not 101"),
        ({"guider": {"name": "cfg_zero_star", "zero_steps": 10**400}}, "invalid_value", "guider.zero_steps", "to 200"),
        ({"guider": {"name": "pag", "layers": [6]}}, "invalid_value", "guider.layers", "has the layers 0 to 5, not 6"),
        ({"guider": {"name": "pag", "start": 0.9}}, "invalid_value", "guider.stop", "stop at 0.2 of the steps"),
        ({"guider": "apg", "guidance_scale": 1}, "invalid_value", "guider", "needs a 'guidance_scale' above 1, not 1"),
        ({"guider": {"name": "pag", "layer": 6}}, "unknown_parameter", "guider.layer", "Unknown parameter"),
        ({"guider": {"scale": 2}}, "missing_required_parameter", "guider.name", "Missing"),
        ({"guider": {"name": "pag", "scale": "3"}}, "invalid_type", "guider.scale", "number"),
        ({"guider": 3}, "invalid_type", "guider", "guider"),
        ({"guider": '{"name":'}, "invalid_type", "guider", "JSON"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused_by_name(client, service, fields, code, param, words):
    response = await client.post(URL, json={"prompt": "x", "guidance_scale": 3.0, **fields})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)
    assert words in error["message"]
    assert service.requests == []


async def test_a_form_is_told_the_same(client):
    data = {"model": "editor", "prompt": "x", "guidance_scale": "3", "guider": json.dumps({"name": "pag", "foo": 1})}
    response = await client.post(EDITS, data=data, files=[("image", ("a.png", PNG))])
    assert response.json()["error"]["param"] == "guider.foo"


async def test_models_tell_which_they_take(client):
    told = (await client.get("/v1/models/tiny")).json()["abilities"]
    assert (told["guiders"], told["guider_layers"]) == (["cfg", "apg", "pag", "cfg_zero_star"], 6)

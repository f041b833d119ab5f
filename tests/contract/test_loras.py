"""LoRA adapters of a request: forms of the field, bounds, and what a model's servers have."""

from __future__ import annotations

import json

import pytest

from gateway.api.idempotency import Sent
from gateway.api.schema import GenerationBody
from tests.contract.test_edits import PNG
from wire.params import AdapterUse

URL, EDITS = "/v1/images/generations", "/v1/images/edits"

STYLE, INK = AdapterUse("style", "0a", 1.0), AdapterUse("ink-2.1", "0b", 0.5)


def used(service) -> tuple[AdapterUse, ...]:
    (request,) = service.requests
    (adapters,) = {image.adapters for image in request.images}
    return adapters


@pytest.mark.parametrize(
    ("fields", "adapters"),
    [
        ({}, ()),
        ({"lora": None}, ()),
        ({"lora": []}, ()),
        ({"lora": "style"}, (STYLE,)),
        ({"lora": {"name": "style"}}, (STYLE,)),
        ({"loras": ["style"]}, (STYLE,)),
        ({"image_loras": [{"name": "style", "scale": 1}]}, (STYLE,)),
        ({"lora": "style", "loras": [{"name": "style", "scale": 1.0}]}, (STYLE,)),
        ({"lora": ["style", {"name": "ink-2.1", "scale": 0.5}]}, (INK, STYLE)),
        ({"lora": [{"name": "ink-2.1", "scale": 0.5}, "style"], "n": 2}, (INK, STYLE)),
        ({"lora": {"name": "style", "scale": -10}}, (AdapterUse("style", "0a", -10.0),)),
        ({"lora": [{"name": "style", "scale": 0}, {"name": "ink-2.1", "scale": 0.5}]}, (INK,)),
    ],
)
async def test_what_is_asked_for_reaches_the_service(client, service, fields, adapters):
    response = await client.post(URL, json={"prompt": "x", **fields})
    assert response.status_code == 200, response.text
    assert used(service) == adapters


@pytest.mark.parametrize(
    ("fields", "code", "param", "words"),
    [
        ({"lora": "nobody"}, "invalid_value", "lora", "no LoRA 'nobody'; it has ink-2.1, style."),
        ({"model": "org/plain", "loras": "style"}, "invalid_value", "loras", "has no LoRA 'style'; it has none."),
        ({"lora": ["style", "style"]}, "invalid_value", "lora", "'style' is named twice"),
        (
            {"lora": "style", "image_loras": "ink-2.1"},
            "invalid_value",
            "image_loras",
            "'image_loras' contradicts 'lora'",
        ),
        ({"lora": {"name": "style", "scale": 10.5}}, "decimal_above_max_value", "lora.0.scale", "at most 10"),
        ({"lora": {"name": "style", "scale": -11}}, "decimal_below_min_value", "lora.0.scale", "at least -10"),
        ({"lora": {"name": "style", "scale": "1"}}, "invalid_type", "lora.0.scale", ""),
        ({"lora": {"scale": 1}}, "missing_required_parameter", "lora.0.name", ""),
        ({"lora": {"name": "style", "weight": 1}}, "unknown_parameter", "lora.0.weight", ""),
        ({"lora": ""}, "string_below_min_length", "lora.0.name", ""),
        ({"lora": 5}, "invalid_type", "lora.0", ""),
        ({"lora": [["style"]]}, "invalid_type", "lora.0", ""),
        ({"lora": ["style"] * 9}, "invalid_value", "lora", "at most 8 entries, not 9"),
    ],
)
async def test_bad_loras_are_refused(client, service, fields, code, param, words):
    response = await client.post(URL, json={"prompt": "x", **fields})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param), error
    assert words in error["message"]
    assert service.requests == []


FORMS = [
    ([("lora", "style")], ("style", 1.0)),
    ([("lora[]", "style")], ("style", 1.0)),
    ([("lora", '[{"name": "style", "scale": 0.5}]')], ("style", 0.5)),
    ([("loras", '{"name": "style"}')], ("style", 1.0)),
    ([("lora[name]", "style"), ("lora[scale]", "0.5")], ("style", 0.5)),
    ([("lora[][scale]", "0.5"), ("lora[][name]", "style")], ("style", 0.5)),
    ([("lora[0][name]", "style"), ("lora[0][scale]", "-1")], ("style", -1.0)),
    ([("lora", ""), ("loras", "null")], None),
]


@pytest.mark.parametrize(("parts", "wanted"), FORMS)
async def test_forms_say_the_same(client, service, parts, wanted):
    fields: dict[str, list[str]] = {}
    for name, value in [("model", "editor"), ("prompt", "x"), *parts]:
        fields.setdefault(name, []).append(value)
    response = await client.post(EDITS, data=fields, files={"image": ("a.png", PNG, "image/png")})
    assert response.status_code == 200, response.text
    assert used(service) == (() if wanted is None else (AdapterUse(wanted[0], "0a", wanted[1]),))


@pytest.mark.parametrize(
    ("parts", "code", "param"),
    [
        ({"lora": "[{"}, "invalid_type", "lora"),
        ({"lora": '{"name": "style", "scale": 99}'}, "decimal_above_max_value", "lora.0.scale"),
        ({"lora[][name]": "style", "lora[][scale]": "much"}, "invalid_type", "lora.0.scale"),
        ({"lora[][scale]": "1"}, "invalid_value", "lora"),
        ({"lora": ["style", "style"]}, "invalid_value", "lora"),
        ({"lora[][weight]": "1"}, "unknown_parameter", "lora[][weight]"),
    ],
)
async def test_bad_forms_are_refused(client, service, parts, code, param):
    fields = {"model": "editor", "prompt": "x", **parts}
    response = await client.post(EDITS, data=fields, files={"image": ("a.png", PNG, "image/png")})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param), error
    assert service.requests == []


async def test_models_tell_their_loras(client):
    listing = {model["id"]: model["loras"] for model in (await client.get("/v1/models")).json()["data"]}
    assert (listing["tiny"], listing["org/plain"], listing["editor"]) == (["ink-2.1", "style"], [], ["style"])
    assert (await client.get("/v1/models/tiny")).json()["loras"] == ["ink-2.1", "style"]


async def test_the_document_tells_their_form(client):
    text = json.dumps((await client.get("/openapi.json")).json())
    assert text.count('"One or a list of {name, scale}; a bare name has the scale 1.') >= 3


def test_an_idempotency_key_tells_loras_apart():
    """Whatever keeps answers counts what changes them."""
    bodies = [{}, {"lora": "style"}, {"lora": "ink-2.1"}, {"lora": {"name": "style", "scale": 0.5}}, {"lora": "style"}]
    sent = [Sent("images/generations", GenerationBody(prompt="x", **body)).digest("key") for body in bodies]
    assert len(set(sent[:4])) == 4
    assert sent[4] == sent[1]

"""ControlNets of a request: their pictures, what each takes, and which task it becomes."""

from __future__ import annotations

import json

import msgspec
import pytest

from tests.contract.conftest import EDIT_WORKFLOWS, MODELS
from tests.contract.test_edits import PNG, data_url, png
from wire.params import Control, ControlUse, IPAdapterUse, Workflow

URL, EDITS = "/v1/images/generations", "/v1/images/edits"
PICTURE, MASK = data_url(PNG), data_url(png(mode="RGBA"))
CONTROLS = (Control("canny", 0.4), Control("depth", 0.4), Control("union", 0.4, 3, alone=True))
CANNY = {"name": "canny", "image": PICTURE}


def _controlled(plain: Workflow) -> tuple[Workflow, ...]:
    inputs = (*plain.inputs, "control_image")
    return tuple(Workflow(f"controlnet_{kind}{plain.name}", inputs) for kind in ("", "union_"))


@pytest.fixture(autouse=True)
def controlled(service) -> None:
    text = MODELS[0].workflows[0]
    tasks = (*_controlled(text), *_controlled(EDIT_WORKFLOWS[0]))
    tasks += tuple(
        Workflow(f"ip_adapter_{each.name}", (*each.inputs, "ip_adapter_image"))
        for each in (text, EDIT_WORKFLOWS[0], *_controlled(text))
    )
    service.served = tuple(
        msgspec.structs.replace(model, controls=CONTROLS, ip_adapters=("style",), workflows=(*model.workflows, *tasks))
        if model.name in ("tiny", "editor")
        else model
        for model in MODELS
    )


@pytest.mark.parametrize(
    ("control", "workflow", "uses", "names"),
    [
        (CANNY, "controlnet_text2image", (ControlUse("canny"),), ["control_image"]),
        (
            [{**CANNY, "scale": 0.5, "end": 0.8}, {"name": "depth", "image": {"image_url": PICTURE}}],
            "controlnet_text2image",
            (ControlUse("canny", 0.5, 0.0, 0.8), ControlUse("depth")),
            ["control_image", "control_image_1"],
        ),
        (
            {"name": "union", "image": PICTURE, "mode": 2},
            "controlnet_union_text2image",
            (ControlUse("union", mode=2),),
            ["control_image"],
        ),
        ([], "text2image", (), []),
        (None, "text2image", (), []),
    ],
)
async def test_what_is_asked_for_reaches_the_service(client, service, control, workflow, uses, names):
    response = await client.post(URL, json={"prompt": "x", "control": control})
    assert response.status_code == 200, response.text
    (request,) = service.requests
    assert (request.images[0].workflow, request.images[0].controls) == (workflow, uses)
    assert sorted(request.uploads) == names


async def test_an_uploaded_file_may_steer(client, service):
    sent = await client.post("/v1/files", data={"purpose": "vision"}, files={"file": ("a.png", PNG, "image/png")})
    control = {"name": "canny", "image": {"file_id": sent.json()["id"]}}
    response = await client.post(URL, json={"prompt": "x", "control": control})
    assert response.status_code == 200, response.text
    assert list(service.requests[0].uploads) == ["control_image"]


async def test_edits_are_steered_by_json_and_by_forms(client, service):
    body = {"model": "editor", "prompt": "x", "image_url": PICTURE, "control": [CANNY]}
    assert (await client.post(EDITS, json=body)).status_code == 200
    control = json.dumps([{"name": "canny"}, {"name": "depth", "scale": 0.3}])
    files = [("image", ("a.png", PNG)), ("control_image[]", ("b.png", PNG)), ("control_image[]", ("c.png", PNG))]
    form = await client.post(EDITS, data={"model": "editor", "prompt": "x", "control": control}, files=files)
    assert form.status_code == 200, form.text
    first, second = service.requests
    assert {first.images[0].workflow, second.images[0].workflow} == {"controlnet_image2image"}
    assert sorted(first.uploads) == ["control_image", "image"]
    assert sorted(second.uploads) == ["control_image", "control_image_1", "image"]
    assert second.images[0].controls == (ControlUse("canny"), ControlUse("depth", 0.3))
    assert first.images[0].strength == 0.8


@pytest.mark.parametrize(
    ("control", "code", "param", "words"),
    [
        ({"name": "sketch", "image": PICTURE}, "invalid_value", "control.0.name", "it has canny, depth, union"),
        ({"name": "canny"}, "missing_required_parameter", "control.0.image", "Missing"),
        ({"name": "canny", "image": {}}, "invalid_type", "control.0.image", "exactly one of"),
        ({"name": "canny", "image": "what"}, "invalid_type", "control.0.image", "https:// or data:"),
        ({"name": "canny", "image": "data:image/png;base64,AAAA"}, "invalid_image", "control.0.image", ""),
        ({**CANNY, "scale": 10.5}, "decimal_above_max_value", "control.0.scale", "at most 10"),
        ({**CANNY, "scale": -1}, "decimal_below_min_value", "control.0.scale", "at least 0"),
        ({**CANNY, "start": 0.5, "end": 0.5}, "invalid_value", "control.0.end", "start at 0.5"),
        ({**CANNY, "mode": 1}, "invalid_value", "control.0.mode", "takes no 'mode'"),
        ({"name": "union", "image": PICTURE}, "invalid_value", "control.0.mode", "from 0 to 2"),
        ([{"name": "union", "image": PICTURE, "mode": 1}, CANNY], "invalid_value", "control.1.name", "together"),
        ({**CANNY, "kind": 1}, "unknown_parameter", "control.0.kind", "Unknown"),
        ([CANNY] * 5, "invalid_value", "control", "at most 4"),
        (3, "invalid_type", "control.0", ""),
    ],
)
async def test_what_cannot_be_is_refused_by_name(client, service, control, code, param, words):
    response = await client.post(URL, json={"prompt": "x", "control": control})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param), error
    assert words in error["message"]
    assert service.requests == []


async def test_a_model_without_any_says_so(client):
    response = await client.post(URL, json={"model": "org/plain", "prompt": "x", "control": CANNY})
    assert "the model 'org/plain' has no ControlNet 'canny'; it has none" in response.json()["error"]["message"]


async def test_a_task_that_the_model_does_not_steer_is_named(client, service):
    body = {"model": "editor", "prompt": "x", "image_url": PICTURE, "mask": {"image_url": MASK}, "control": CANNY}
    error = (await client.post(EDITS, json=body)).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_value", "control")
    assert "does no controlnet_inpainting; it does image2image, " in error["message"]


async def test_a_form_with_too_many_files_says_what_they_are_for(client):
    files = [("image", ("a.png", PNG)), ("control_image", ("b.png", PNG))]
    form = await client.post(EDITS, data={"model": "editor", "prompt": "x"}, files=files)
    assert form.json()["error"]["param"] == "control_image"


async def test_models_tell_which_they_have(client):
    told = (await client.get("/v1/models/tiny")).json()["abilities"]
    assert told["controls"] == [{"name": "canny"}, {"name": "depth"}, {"name": "union", "modes": 3}]


STYLE = {"name": "style", "image": PICTURE, "scale": 0.6}


@pytest.mark.parametrize(
    ("fields", "workflow", "names"),
    [
        ({}, "ip_adapter_text2image", ["ip_adapter_image"]),
        ({"control": CANNY}, "ip_adapter_controlnet_text2image", ["control_image", "ip_adapter_image"]),
    ],
)
async def test_a_picture_may_prompt(client, service, fields, workflow, names):
    response = await client.post(URL, json={"prompt": "x", "guidance_scale": 3, "ip_adapter": STYLE, **fields})
    assert response.status_code == 200, response.text
    (request,) = service.requests
    assert request.images[0].workflow == workflow
    assert request.images[0].ip_adapter == IPAdapterUse("style", 0.6)
    assert sorted(request.uploads) == names


async def test_a_form_has_files_for_all_that_steer(client, service):
    data = {"model": "editor", "prompt": "x", "guidance_scale": "3", "ip_adapter": json.dumps({"name": "style"})}
    files = [("image", ("a.png", PNG)), ("ip_adapter_image", ("b.png", PNG))]
    form = await client.post(EDITS, data=data, files=files)
    assert form.status_code == 200, form.text
    assert sorted(service.requests[0].uploads) == ["image", "ip_adapter_image"]
    assert service.requests[0].images[0].workflow == "ip_adapter_image2image"


@pytest.mark.parametrize(
    ("entry", "code", "param", "words"),
    [
        ({**STYLE, "name": "face"}, "invalid_value", "ip_adapter.name", "has no IP-Adapter 'face'; it has style."),
        ({"name": "style"}, "missing_required_parameter", "ip_adapter.image", "Missing"),
        ({**STYLE, "scale": -1}, "decimal_below_min_value", "ip_adapter.scale", "at least 0"),
        (STYLE, "invalid_value", "ip_adapter", "needs a 'guidance_scale' above 1"),
        ({**STYLE, "mode": 1}, "unknown_parameter", "ip_adapter.mode", "Unknown"),
    ],
)
async def test_a_prompting_picture_that_cannot_be_is_refused(client, service, entry, code, param, words):
    response = await client.post(URL, json={"prompt": "x", "ip_adapter": entry})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param), error
    assert words in error["message"]
    assert service.requests == []


@pytest.mark.parametrize("fields", [{"control": CANNY}, {"ip_adapter": STYLE}])
async def test_a_step_cache_does_not_go_with_it(client, service, fields):
    service.served = tuple(msgspec.structs.replace(model, step_caches={"fast": "some"}) for model in service.served)
    body = {"prompt": "x", "guidance_scale": 3, "step_cache": "fast", **fields}
    error = (await client.post(URL, json=body)).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "step_cache")
    assert service.requests == []

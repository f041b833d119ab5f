"""Keys, cross-origin calls, models, health (T29, T50)."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

KEYS = {"alice": SecretStr("sk-alice"), "bob": SecretStr("sk-bøb")}
URL = "/v1/images/generations"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer "},
        {"authorization": "Basic sk-alice"},
        {"api-key": "sk-alic"},
    ],
)
async def test_refused_keys(connect, service, headers):
    client = connect(api_keys=KEYS)
    for response in (
        await client.post(URL, json={"prompt": "x"}, headers=headers),
        await client.get("/v1/models", headers=headers),
        await client.get("/v1/models/tiny", headers=headers),
    ):
        assert response.status_code == 401
        error = response.json()["error"]
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "invalid_api_key")
        assert "sk-" not in response.text
    assert not service.requests


@pytest.mark.parametrize(
    ("headers", "tenant"),
    [
        ({"authorization": "Bearer sk-alice"}, "alice"),
        ({"authorization": "bearer sk-alice"}, "alice"),
        ({"api-key": "sk-alice"}, "alice"),
        ({"authorization": "Bearer sk-bøb".encode()}, "bob"),
    ],
)
async def test_accepted_keys_name_the_tenant(connect, service, headers, tenant):
    response = await connect(api_keys=KEYS).post(URL, json={"prompt": "x"}, headers=headers)
    assert response.status_code == 200
    assert service.requests[0].tenant == tenant


async def test_an_open_server_takes_any_key(client, service):
    assert (await client.post(URL, json={"prompt": "x"}, headers={"authorization": "Bearer any"})).status_code == 200
    assert service.requests[0].tenant == ""


async def test_probes_and_pictures_need_no_key(connect):
    client = connect(api_keys=KEYS)
    answer = await client.post(
        URL, json={"prompt": "x", "response_format": "url"}, headers={"authorization": "Bearer sk-alice"}
    )
    for url in ("/healthz", "/livez", "/readyz", answer.json()["data"][0]["url"]):
        assert (await client.get(url)).status_code == 200


async def test_a_preflight_needs_no_key(connect):
    client = connect(api_keys=KEYS, cors_origins=("https://app.example",))
    headers = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    response = await client.options(URL, headers=headers)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    assert response.headers["x-request-id"]
    refused = await client.post(URL, json={"prompt": "x"}, headers={"origin": "https://app.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example"
    assert "x-request-id" in refused.headers["access-control-expose-headers"]
    assert (await client.options(URL, headers=headers | {"origin": "https://evil.example"})).status_code == 400


async def test_a_crash_can_be_read_across_origins(connect, service):
    service.error = RuntimeError("boom")
    client = connect(cors_origins=("https://app.example",))
    response = await client.post(URL, json={"prompt": "x"}, headers={"origin": "https://app.example"})
    assert response.status_code == 500
    assert response.headers["access-control-allow-origin"] == "https://app.example"


async def test_models_and_aliases(client):
    listing = (await client.get("/v1/models")).json()
    assert listing["object"] == "list"
    assert [model["id"] for model in listing["data"]] == [
        *("tiny", "org/plain", "editor", "instructor"),
        *("gpt-image-1", "dall-e-3"),
    ]
    for model in listing["data"]:
        assert list(model) == ["id", "object", "created", "owned_by", "loras", "default", "abilities"]
        assert isinstance(model["created"], int)
        assert (await client.get(f"/v1/models/{model['id']}")).json() == model


async def test_what_requests_may_ask_of_a_model(client):
    told = {model["id"]: model["abilities"] for model in (await client.get("/v1/models")).json()["data"]}
    assert told["tiny"]["size"]["default"] == "64x64"
    assert told["tiny"]["generate"]["parameters"] == [
        *("negative_prompt", "num_inference_steps", "guidance_scale", "max_sequence_length")
    ]
    assert (told["org/plain"]["edit"], told["org/plain"]["edit_with_mask"]) == (None, None)
    assert told["editor"]["edit"]["default_strength"] == 0.8
    assert told["editor"]["edit_with_mask"]["max_images"] == 1
    assert told["instructor"]["edit"]["max_images"] > 1
    assert "default_strength" not in told["instructor"]["edit"]
    assert told["gpt-image-1"] == told["tiny"]


async def test_the_model_of_requests_that_name_none(client, connect):
    listing = (await client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listing if model["default"]] == ["tiny"]
    listing = (await connect(default_model="gpt-image-1").get("/v1/models")).json()["data"]
    assert [model["id"] for model in listing if model["default"]] == ["gpt-image-1"]


async def test_one_model(client):
    plain, encoded = await client.get("/v1/models/org/plain"), await client.get("/v1/models/org%2Fplain")
    assert plain.json() == encoded.json()
    assert plain.json()["id"] == "org/plain"
    for unknown in ("gone", "org", ""):
        response = await client.get(f"/v1/models/{unknown}")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"


async def test_readiness_says_what_is_missing(client, service):
    assert (await client.get("/readyz")).json()["status"] == "ready"
    service.is_ready = False
    response = await client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["models"]["tiny"]["missing"] == ["dit"]
    assert response.json()["error"]["code"] == "not_ready"
    assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 600),
        ({"x-stainless-read-timeout": "30"}, 30),
        ({"x-stainless-timeout": "45"}, 45),
        ({"x-stainless-read-timeout": "30", "x-request-timeout": "12.5"}, 12.5),
        ({"x-request-timeout": "7200"}, 600),
        ({"x-stainless-read-timeout": "nonsense", "x-stainless-timeout": "-3"}, 600),
    ],
)
async def test_clients_may_lower_the_deadline(client, service, headers, seconds):
    assert (await client.post(URL, json={"prompt": "x"}, headers=headers)).status_code == 200
    assert service.requests[0].deadline_seconds == seconds


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf", "nan"])
async def test_a_bad_deadline_is_refused(client, text):
    response = await client.post(URL, json={"prompt": "x"}, headers={"x-request-timeout": text})
    assert response.status_code == 400
    assert "x-request-timeout" in response.json()["error"]["message"]


async def test_the_schema_describes_the_body(client):
    paths = (await client.get("/openapi.json")).json()["paths"]
    schema = paths[URL]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["prompt"]
    assert schema["additionalProperties"] is False

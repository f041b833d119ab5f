"""Keys of the database at the API: forty combinations of key and endpoint, what each costs, and its models."""

from __future__ import annotations

import hashlib
import hmac
import io
import time
from collections import Counter
from types import SimpleNamespace

import httpx
import openai
import pytest
from PIL import Image
from pydantic import SecretStr

from gateway.accounts import secrets
from gateway.accounts.caller import Caller, Scope
from gateway.accounts.keyring import TRUSTED_SECONDS, KeyRing
from gateway.api.app import create_app
from gateway.database.keys import StoredKeys

GENERATIONS, EDITS, MODEL, FILES, FILE = "generations", "edits", "model", "files", "file of alice"

STATUSES = {  # in the order of the endpoints
    "right": (200, 200, 200, 200, 200),
    "static": (200, 200, 200, 200, 200),
    "wrong": (401, 401, 401, 401, 401),
    "revoked": (401, 401, 401, 401, 401),
    "expired": (401, 401, 401, 401, 401),
    "generate-only": (200, 403, 200, 200, 200),
    "usage-only": (403, 403, 200, 403, 403),
    "other-tenant": (200, 200, 200, 200, 404),
}


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    return buffer.getvalue()


class Scene:
    def __init__(self, service, settings, database):
        self.now = 0.0
        self.stored = StoredKeys(database)
        static = {"alice": SecretStr("sk-static")}
        self.ring = KeyRing(static, self.stored, anonymous=False, monotonic=lambda: self.now)
        self.app = create_app(service, settings, keys=self.ring)

    async def create(self, name, tenant="alice", expires=None, **rights):
        digest = secrets.digest_of(f"sk-{name}".encode())
        key = await self.stored.create(Caller(tenant, **rights), name, digest, time.time(), expires)
        await self.ring.refresh()
        return key

    def client(self, name):
        headers = {"authorization": f"Bearer sk-{name}"}
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://g", headers=headers)


@pytest.fixture
async def scene(service, settings, database):
    made = Scene(service, settings, database)
    await made.create("right")
    await made.create("generate-only", scopes=frozenset({Scope.GENERATE}))
    await made.create("usage-only", scopes=frozenset({Scope.USAGE}))
    await made.create("other-tenant", "bob")
    await made.create("expired", expires=time.time() - 1)
    await made.stored.revoke(await made.create("revoked"), time.time())
    await made.ring.refresh()
    return made


async def ask(client, endpoint, file):
    match endpoint:
        case "generations":
            return await client.post("/v1/images/generations", json={"prompt": "x", "model": "tiny"})
        case "edits":
            form = {"prompt": "x", "model": "editor"}
            return await client.post("/v1/images/edits", data=form, files={"image": ("a.png", png())})
        case "model":
            return await client.get("/v1/models/tiny")
        case "files":
            return await client.get("/v1/files")
        case _:
            return await client.get(f"/v1/files/{file}")


@pytest.fixture
def costs(monkeypatch):
    """How many digests and comparisons were made since the last look."""
    counted = Counter()

    def counting(name, function):
        def call(*arguments):
            counted[name] += 1
            return function(*arguments)

        return call

    monkeypatch.setattr(secrets, "hashlib", SimpleNamespace(sha256=counting("digests", hashlib.sha256)))
    monkeypatch.setattr(hmac, "compare_digest", counting("comparisons", hmac.compare_digest))

    def since():
        found = dict(counted)
        counted.clear()
        return found

    return since


@pytest.mark.parametrize("key", STATUSES)
async def test_the_status_and_the_cost_of_every_key_at_every_endpoint(scene, service, costs, key):
    async with scene.client("right") as alice:
        upload = await alice.post("/v1/files", data={"purpose": "vision"}, files={"file": ("a.png", png())})
    costs()
    statuses = []
    async with scene.client(key) as client:
        for endpoint in (GENERATIONS, EDITS, MODEL, FILES, FILE):
            answer = await ask(client, endpoint, upload.json()["id"])
            statuses.append(answer.status_code)
            assert costs() == {"digests": 1, "comparisons": 1}, endpoint
            if answer.status_code >= 400:
                error = answer.json()["error"]
                codes = {401: "invalid_api_key", 403: "missing_scope", 404: "file_not_found"}
                assert (error["type"], error["code"]) == ("invalid_request_error", codes[answer.status_code])
                assert "sk-" not in answer.text
    assert tuple(statuses) == STATUSES[key]
    assert len(service.requests) == STATUSES[key][:2].count(200)


async def test_refusals_say_why(scene):
    said = {}
    for key in ("wrong", "revoked", "expired", "usage-only"):
        async with scene.client(key) as client:
            said[key] = (await client.get("/v1/files")).json()["error"]["message"]
    assert said == {
        "wrong": "Incorrect API key provided.",
        "revoked": "This API key has been revoked.",
        "expired": "This API key has expired.",
        "usage-only": "This API key may not do that: it lacks the scope 'edit' or 'generate' or 'jobs'.",
    }


async def test_models_that_a_key_may_not_use(scene, service):
    await scene.create("restricted", models=frozenset({"tiny", "editor"}))
    url = "/v1/images/generations"
    async with scene.client("restricted") as client:
        for allowed in ("tiny", "gpt-image-1", None):  # an alias of tiny; the default, which is tiny
            body = {"prompt": "x"} | ({"model": allowed} if allowed else {})
            assert (await client.post(url, json=body)).status_code == 200
        answer = await client.post(url, json={"prompt": "x", "model": "org/plain"})
        assert answer.status_code == 403
        assert answer.json()["error"] == {
            "message": "This API key may not use the model 'org/plain', but only: editor, tiny.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_allowed",
        }
        assert (await client.post(url, json={"prompt": "x", "model": "nothing"})).status_code == 404
        edit = {"prompt": "x", "model": "instructor"}
        refused = await client.post("/v1/images/edits", data=edit, files={"image": ("a.png", png())})
        assert refused.json()["error"]["code"] == "model_not_allowed"
        assert (await client.get("/v1/models/org/plain")).status_code == 403
        listed = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
    assert listed == ["tiny", "editor", "gpt-image-1", "dall-e-3"]
    assert len(service.requests) == 3


async def test_an_alias_may_be_allowed_without_its_model(scene):
    await scene.create("alias", models=frozenset({"gpt-image-1"}))
    async with scene.client("alias") as client:
        statuses = [
            (await client.post("/v1/images/generations", json={"prompt": "x", "model": model})).status_code
            for model in ("gpt-image-1", "tiny", "dall-e-3")
        ]
    assert statuses == [200, 403, 403]


async def test_the_sdk_raises_its_own_errors(scene):
    async with scene.client("usage-only") as http:
        sdk = openai.AsyncOpenAI(api_key="sk-usage-only", base_url="http://g/v1", http_client=http, max_retries=0)
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await sdk.images.generate(prompt="x", model="tiny")
        assert caught.value.code == "missing_scope"
        sdk = sdk.with_options(api_key="sk-revoked")
        with pytest.raises(openai.AuthenticationError) as refused:
            await sdk.images.generate(prompt="x", model="tiny")
        assert refused.value.code == "invalid_api_key"


async def test_what_nobody_can_tell_is_503_and_static_keys_work_on(scene):
    scene.now = TRUSTED_SECONDS + 1
    for key, status in (("right", 503), ("wrong", 503), ("static", 200), ("revoked", 401)):
        async with scene.client(key) as client:
            answer = await client.post("/v1/images/generations", json={"prompt": "x"})
        assert answer.status_code == status
        if status == 503:
            assert answer.json()["error"]["code"] == "storage_unavailable"
            assert 1 <= int(answer.headers["retry-after"]) <= 60

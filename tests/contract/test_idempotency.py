"""``Idempotency-Key`` (contract test T52): OpenAI's SDK and raw sockets against a real server with a real database."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import openai
import pytest
import uvicorn
from PIL import Image

from gateway.api.app import create_app
from gateway.database.database import Database
from gateway.idempotency.once import open_once
from gateway.service.interfaces import Finished, GenerationFailed, ModerationBlocked, NoCapacity, Ready, Took
from gateway.settings import Settings
from gateway.storage.storage import Storage
from tests.contract.metered import keys
from tests.databases import prepared

OPTIONS = {"api_key": "none", "max_retries": 0, "_strict_response_validation": True}
KEY = {"Idempotency-Key": "a5a4a6d2-6b0d-4ac0-8f57-8c5f0a2d4f10"}
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
ORIGIN, ORIGINAL = "x-idempotency", "x-original-request-id"


def gateway_app(service, settings: Settings, folder: Path, storage: Storage, *, opened: bool = True):
    """As ``python -m gateway`` puts it together. Not ``opened``: the database cannot be reached."""
    database = Database(settings.model_copy(update={"state_dir": prepared(folder)}))

    @asynccontextmanager
    async def lifespan(_):
        if opened:
            await database.open()
        yield
        await database.close()

    once = open_once(settings, database, storage.objects, "gateway-1")
    return create_app(service, settings, storage=storage, once=once, lifespan=lifespan)


@contextmanager
def serving(app) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", lifespan="on", proxy_headers=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="uvicorn")
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()


Serve = Callable[..., str]


@pytest.fixture
def live(service, settings, tmp_path) -> Iterator[str]:
    with serving(gateway_app(service, settings, tmp_path, Storage(settings))) as url:
        yield url


@pytest.fixture
def sdk(live):
    with openai.OpenAI(base_url=f"{live}/v1", **OPTIONS) as client:
        yield client


@pytest.fixture
def http(live):
    with httpx.Client(base_url=live, timeout=60) as client:
        yield client


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "png")
    return buffer.getvalue()


def test_the_same_request_twice_is_one_generation(sdk, service):
    first, again = (
        sdk.images.with_raw_response.generate(model="tiny", prompt="x", n=2, extra_headers=KEY) for _ in range(2)
    )
    assert len(service.requests) == 1
    assert first.content == again.content
    assert [base64.b64decode(item.b64_json)[:4] for item in again.parse().data] == [b"\x89PNG"] * 2
    assert (first.headers[ORIGIN], again.headers[ORIGIN]) == ("new", "replayed")
    assert again.headers[ORIGINAL] == first.headers["x-request-id"] != again.headers["x-request-id"]
    assert ORIGINAL not in first.headers
    for name in ("content-type", "content-length", "x-seed", "x-seeds", "x-predicted-wait-ms", "server-timing"):
        assert first.headers[name] == again.headers[name], name


def test_without_the_header_every_request_is_its_own(http, service):
    answers = [http.post(GENERATIONS, json={"prompt": "x"}) for _ in range(2)]
    assert len(service.requests) == 2
    assert not any(ORIGIN in answer.headers for answer in answers)


def test_another_body_is_refused_and_the_sdk_does_not_try_again(live, service):
    with openai.OpenAI(base_url=f"{live}/v1", **OPTIONS | {"max_retries": 2}) as client:
        client.images.generate(model="tiny", prompt="x", extra_headers=KEY)
        for change in ({"prompt": "y"}, {"n": 2}, {"extra_body": {"seed": 1}}, {"stream": True}):
            with pytest.raises(openai.ConflictError) as refused:
                client.images.generate(**{"model": "tiny", "prompt": "x", "extra_headers": KEY} | change)
            assert (refused.value.code, refused.value.type) == ("idempotency_key_reused", "invalid_request_error")
            assert refused.value.response.headers["x-should-retry"] == "false"
        with pytest.raises(openai.ConflictError):
            client.images.edit(model="editor", prompt="x", image=png(), extra_headers=KEY)
    assert len(service.requests) == 1


def test_how_the_same_body_is_written_does_not_matter(http, service):
    bodies = ['{"prompt": "x", "n": 1}', '{"n":1,"prompt":"\\u0078"}', '{"n": 1, "prompt": "x", "seed": null}']
    headers = KEY | {"content-type": "application/json"}
    answers = [http.post(GENERATIONS, content=body, headers=headers) for body in bodies]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len(service.requests) == 1


def test_edits_are_told_apart_by_their_pictures_and_not_by_how_a_form_is_divided(sdk, service):
    def edit(*colours: str) -> object:
        """Each call divides its form at another boundary."""
        return sdk.images.with_raw_response.edit(
            model="instructor", prompt="x", image=[png(each) for each in colours], extra_headers=KEY
        )

    first, again = edit("red", "blue"), edit("red", "blue")
    assert (first.headers[ORIGIN], again.headers[ORIGIN]) == ("new", "replayed")
    assert first.content == again.content
    for other in (("red", "green"), ("blue", "red"), ("red",)):
        with pytest.raises(openai.ConflictError):
            edit(*other)
    assert len(service.requests) == 1


def test_edits_in_json_and_a_mask(http, service):
    def url(data: bytes) -> dict[str, str]:
        return {"image_url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}

    mask = io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(mask, "png")
    body = {"model": "editor", "prompt": "x", "images": [url(png())]}
    for sent, status in ((body, 200), (body, 200), (body | {"mask": url(mask.getvalue())}, 409)):
        assert http.post(EDITS, json=sent, headers=KEY).status_code == status
    assert len(service.requests) == 1


def test_a_stream_comes_again_as_its_finished_pictures(sdk, service):
    def events() -> list:
        stream = sdk.images.generate(model="tiny", prompt="x", n=2, stream=True, partial_images=2, extra_headers=KEY)
        return list(stream)

    first, again = events(), events()
    assert len(service.requests) == 1
    finished = [event for event in first if event.type == "image_generation.completed"]
    assert len(first) == 6
    assert [event.to_dict() for event in again] == [event.to_dict() for event in finished]


def test_a_file_is_stored_once(sdk):
    first, again = (sdk.files.create(file=("a.txt", b"text"), purpose="user_data", extra_headers=KEY) for _ in range(2))
    assert first == again
    assert [file.id for file in sdk.files.list()] == [first.id]
    for change in ({"file": ("a.txt", b"other")}, {"file": ("b.txt", b"text")}, {"purpose": "vision"}):
        with pytest.raises(openai.ConflictError):
            sdk.files.create(**{"file": ("a.txt", b"text"), "purpose": "user_data", "extra_headers": KEY} | change)


def test_fifty_at_once_are_one_generation(live, service):
    service.hang = True

    with httpx.Client(base_url=live, timeout=60) as http, ThreadPoolExecutor(50) as pool:
        calls = [pool.submit(http.post, GENERATIONS, json={"prompt": "x"}, headers=KEY) for _ in range(50)]
        assert service.started.wait(10)
        service.resume()
        answers = [each.result() for each in calls]
    assert len(service.requests) == 1
    assert {(answer.status_code, answer.content) for answer in answers} == {(200, answers[0].content)}
    assert [answer.headers[ORIGIN] for answer in answers].count("new") == 1


def begin(live: str, body: bytes) -> socket.socket:
    """A request whose answer is not waited for."""
    host, port = live.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(
        b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"idempotency-key: %s\r\ncontent-length: %d\r\n\r\n%s" % (KEY["Idempotency-Key"].encode(), len(body), body)
    )
    return connection


def test_a_client_that_lost_its_connection_finds_its_work_again(live, service, sdk):
    service.hang = True
    body = {"model": "tiny", "prompt": "x"}
    with begin(live, json.dumps(body).encode()):
        assert service.started.wait(10)
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(sdk.images.with_raw_response.generate, **body, extra_headers=KEY)
        service.resume()
        assert again.result().headers[ORIGIN] in ("joined", "replayed")
    assert not service.cancelled.is_set()
    assert len(service.requests) == 1


def test_a_stream_that_was_lost_is_joined_where_it_is(live, service, sdk):
    service.hang = service.is_admitted = True
    body = {"model": "tiny", "prompt": "x", "stream": True}
    with begin(live, json.dumps(body).encode()) as lost:
        assert lost.recv(4096).startswith(b"HTTP/1.1 200 OK")
    stream = sdk.images.generate(**body, extra_headers=KEY)  # returns when the answer has begun
    service.resume()
    assert [event.type for event in stream] == ["image_generation.completed"]
    assert not service.cancelled.is_set()
    assert len(service.requests) == 1


@pytest.mark.parametrize(
    ("error", "status", "calls"),
    [
        (NoCapacity("Full.", retry_after_seconds=3), 503, 2),
        (GenerationFailed("three attempts"), 500, 2),
        (ModerationBlocked("Your request was rejected."), 400, 1),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_kept_where_they_are_final(http, service, error, status, calls, stream):
    service.error = error
    answers = [http.post(GENERATIONS, json={"prompt": "x", "stream": stream}, headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [status] * 2
    assert answers[0].content == answers[1].content
    assert len(service.requests) == calls
    service.error = None
    assert http.post(GENERATIONS, json={"prompt": "x", "stream": stream}, headers=KEY).status_code == (
        400 if status == 400 else 200
    )


def test_an_error_within_a_stream_is_kept_if_it_is_final(http, service):
    service.late_error = ModerationBlocked("Your request was rejected.")
    body = {"prompt": "x", "n": 2, "stream": True}
    _, again = (http.post(GENERATIONS, json=body, headers=KEY) for _ in range(2))
    assert again.headers[ORIGIN] == "replayed"
    assert b"moderation_blocked" in again.content
    assert b"image_generation.completed" in again.content
    assert len(service.requests) == 1


def test_a_mistake_is_no_use_of_the_key(http, service):
    wrong = http.post(GENERATIONS, json={"prompt": "x", "size": "banana"}, headers=KEY)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "size")
    assert http.post(GENERATIONS, json={"prompt": "x"}, headers=KEY).status_code == 200
    assert len(service.requests) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "\u00fc", "a\tb"])
def test_keys_that_are_none(http, key):
    response = http.post(GENERATIONS, json={"prompt": "x"}, headers={"Idempotency-Key": key.encode()})
    assert response.status_code == 400
    assert "Idempotency-Key" in response.json()["error"]["message"]
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    assert http.post(GENERATIONS, json={"prompt": "x"}, headers=headers).status_code == 400


@pytest.mark.parametrize("settings", [Settings(api_keys={"alice": "sk-alice", "bob": "sk-bob"})])
def test_a_key_belongs_to_its_tenant(http, service):
    for caller in ("alice", "bob", "alice"):
        headers = KEY | {"authorization": f"Bearer sk-{caller}"}
        assert http.post(GENERATIONS, json={"prompt": caller}, headers=headers).status_code == 200
    assert [request.tenant for request in service.requests] == ["alice", "bob"]


@pytest.mark.parametrize("settings", [Settings(trusted_proxies=("127.0.0.1",))])
def test_without_api_keys_it_belongs_to_the_address_that_a_trusted_proxy_names(http, service):
    for number in (1, 2, 1):
        headers = KEY | {"x-forwarded-for": f"203.0.113.{number}"}
        assert http.post(GENERATIONS, json={"prompt": f"{number}"}, headers=headers).status_code == 200
    assert len(service.requests) == 2


def test_an_answer_with_urls_is_kept_no_longer_than_its_pictures(service, settings, tmp_path):
    """The urls of a replay must open."""
    with (
        serving(gateway_app(service, settings, tmp_path, Storage(settings))) as url,
        httpx.Client(base_url=url) as http,
    ):
        body = {"prompt": "x", "response_format": "url"}
        first, again = (http.post(GENERATIONS, json=body, headers=KEY).json() for _ in range(2))
        assert first == again
        assert http.get(again["data"][0]["url"]).status_code == 200
    brief = settings.model_copy(update={"results_max_age_seconds": 1e-6})
    with serving(gateway_app(service, brief, tmp_path, Storage(brief))) as url, httpx.Client(base_url=url) as http:
        headers = {"Idempotency-Key": "another"}
        assert [http.post(GENERATIONS, json=body, headers=headers).headers[ORIGIN] for _ in range(2)] == ["new", "new"]


def test_answers_outlive_the_gateway(service, settings, tmp_path):
    storage = Storage(settings)
    answers = []
    for _ in range(2):
        with serving(gateway_app(service, settings, tmp_path, storage)) as url:
            answers.append(httpx.post(f"{url}{GENERATIONS}", json={"prompt": "x"}, headers=KEY))
    assert [answer.headers[ORIGIN] for answer in answers] == ["new", "replayed"]
    assert answers[0].content == answers[1].content
    assert len(service.requests) == 1


def test_without_the_database_requests_are_answered_and_told_so(service, settings, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    app = gateway_app(service, settings, tmp_path, Storage(settings), opened=False)
    with serving(app) as url:
        answers = [httpx.post(f"{url}{GENERATIONS}", json={"prompt": "x"}, headers=KEY) for _ in range(2)]
    assert [(answer.status_code, answer.headers[ORIGIN]) for answer in answers] == [(200, "unavailable")] * 2
    assert len(service.requests) == 2
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    asked = [record for record in caplog.records if record.name == "gateway.api.context"]
    assert [record.about["idempotency"] for record in asked] == [
        f"unavailable for {answer.headers['x-request-id']}" for answer in answers
    ]


async def test_the_body_of_an_edit_is_given_back_to_the_room_by_all(connect, service):
    """50 forms at once with one key: one is worked on, the others hold nothing while they wait."""
    service.hang = True
    client = connect()
    app = client._transport.app
    form = {"files": {"image": png()}, "data": {"prompt": "x", "model": "editor"}, "headers": KEY}
    calls = [asyncio.create_task(client.post(EDITS, **form)) for _ in range(50)]
    await asyncio.to_thread(service.started.wait, 10)
    (run,) = app.state.api.once._runs.values()
    async with asyncio.timeout(60):
        while run.audience < 50:  # noqa: ASYNC110 # nothing tells of it
            await asyncio.sleep(0)
    assert app.state.api.room.nbytes == 0
    service.resume()
    answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {200}
    assert len(service.requests) == 1


async def test_what_was_computed_is_charged_once_to_who_began_it_though_they_left(metered, service, monkeypatch):
    records = []
    monkeypatch.setattr(metered.usage, "write", lambda batch: asyncio.sleep(0, records.extend(batch)))
    begun, go = asyncio.Event(), asyncio.Event()

    async def generate(request, listener):
        begun.set()
        await go.wait()
        listener(Took("dit", 3.0))
        listener(Ready(0, png()))
        return Finished((png(),), ())

    service.generate = generate
    client = metered.client(keys())
    leaving = asyncio.create_task(client.post(GENERATIONS, json={"prompt": "x"}, headers=KEY))
    await begun.wait()
    leaving.cancel()
    await asyncio.wait([leaving])
    back = asyncio.create_task(client.post(GENERATIONS, json={"prompt": "x"}, headers=KEY))
    (run,) = client._transport.app.state.api.once._runs.values()
    await run.somebody_came.wait()
    go.set()
    answer = await back
    await metered.meter.write()
    used = {record.id: (record.status, record.images, record.dit_seconds) for record in records}
    assert used == {answer.headers[ORIGINAL]: (200, 1, 3.0), answer.headers["x-request-id"]: (200, 0, 0.0)}

"""Moderation by an operator's hook (contract test T38): OpenAI's SDK, a real gateway, a real hook."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
from PIL import Image

from gateway.given_settings import load_settings
from gateway.settings import InvalidSettings

SECRET = "the hook's own word"  # noqa: S105 # of this test
URL = "/v1/images/generations"
PROMPT = "an unmistakable prompt"
OPTIONS = {"api_key": "none", "max_retries": 0, "_strict_response_validation": True}
ALLOWED = {"allowed": True}
BLOCKED = {"allowed": False, "categories": ["violence", f"quoting: {PROMPT}"]}


class HookServer(ThreadingHTTPServer):
    """Answers each question as ``answers`` says: by the question's stage; a status, bytes or an object."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, object] = {"before": ALLOWED, "after": ALLOWED}
        self.questions: list[dict] = []
        self.authorizations: list[str | None] = []
        self.never = threading.Event()
        """What is to be answered "hang" waits for."""
        self.asked = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/moderate"

    def handle_error(self, *_: object) -> None:
        """The gateway hung up, as it does when another question of the same request has failed."""

    def stages(self) -> list[str]:
        return [question["stage"] for question in self.questions]


class _Handler(BaseHTTPRequestHandler):
    server: HookServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.questions.append(question)
        self.server.asked.set()
        self.server.authorizations.append(self.headers["authorization"])
        answer = self.server.answers[question["stage"]]
        if callable(answer):
            answer = answer(question)
        if answer == "hang":
            self.server.never.wait(30)
        if answer == "drop":
            self.close_connection = True
            return
        status = answer if isinstance(answer, int) else 200
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[HookServer]:
    server = HookServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.never.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def settings(settings, hook, request):
    given = {"moderation_url": hook.url, "moderation_secret": SECRET, **getattr(request, "param", {})}
    return load_settings(**settings.model_dump(exclude_unset=True), **given)


def using(**changes: object) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("settings", [changes], indirect=True, ids=[" ".join(changes)])


@pytest.fixture
def sdk(live):
    with openai.OpenAI(base_url=f"{live}/v1", **OPTIONS) as client:
        yield client


@pytest.fixture(autouse=True)
def no_prompt_in_the_log(caplog):
    caplog.set_level(logging.DEBUG)
    yield
    assert PROMPT not in caplog.text
    assert SECRET not in caplog.text


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "png")
    return buffer.getvalue()


def test_what_is_allowed_comes_through_and_the_hook_sees_it(sdk, hook):
    answer = sdk.images.generate(
        model="tiny", prompt=PROMPT, n=2, output_format="jpeg", extra_body={"negative_prompt": "blur"}
    )
    before, *after = hook.questions
    request_id = before.pop("request_id")
    assert request_id == answer._request_id
    assert before == {
        "stage": "before",
        "tenant": "",
        "model": "tiny",
        "prompt": PROMPT,
        "negative_prompt": "blur",
        "pictures": [],
    }
    after.sort(key=lambda question: question["image_index"])
    shown = [question["pictures"] for question in after]
    assert shown == [
        [{"name": "result", "media_type": "image/jpeg", "b64_json": item.b64_json}] for item in answer.data
    ]
    assert [(question["stage"], question["image_index"], question["prompt"]) for question in after] == [
        ("after", 0, PROMPT),
        ("after", 1, PROMPT),
    ]
    assert set(hook.authorizations) == {f"Bearer {SECRET}"}


def test_a_blocked_prompt_is_never_computed(sdk, hook, service, caplog):
    hook.answers["before"] = BLOCKED
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.images.generate(model="tiny", prompt=PROMPT)
    error = refused.value
    assert (error.status_code, error.code, error.type, error.param) == (
        400,
        "moderation_blocked",
        "image_generation_user_error",
        None,
    )
    # LiteLLM knows a content policy violation by these words.
    assert "request was rejected as a result of the safety system" in error.message
    assert service.requests == []
    assert f"{error.request_id}: blocked by moderation (before): violence\n" in caplog.text


def test_a_blocked_picture_takes_the_others_with_it(sdk, hook):
    hook.answers["after"] = lambda question: BLOCKED if question["image_index"] == 1 else ALLOWED
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.images.generate(model="tiny", prompt=PROMPT, n=3)
    assert refused.value.code == "moderation_blocked"


def test_a_blocked_picture_is_not_stored_behind_a_url(sdk, hook, service, live):
    hook.answers["after"] = BLOCKED
    with pytest.raises(openai.BadRequestError):
        sdk.images.generate(model="dall-e-3", prompt=PROMPT)
    assert len(service.requests) == 1


def test_the_pictures_of_an_edit_are_shown(sdk, hook, service):
    sdk.images.edit(model="instructor", image=[png(), png("blue")], prompt=PROMPT)
    shown = hook.questions[0]["pictures"]
    assert [(each["name"], each["media_type"]) for each in shown] == [("image", "image/png"), ("image_1", "image/png")]
    sent = service.requests[0].uploads
    assert [base64.b64decode(each["b64_json"]) for each in shown] == [sent["image"], sent["image_1"]]
    hook.answers["before"] = BLOCKED
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.images.edit(model="editor", image=png(), prompt=PROMPT)
    assert refused.value.code == "moderation_blocked"
    assert len(service.requests) == 1


def test_a_blocked_prompt_of_a_stream_is_an_ordinary_refusal(sdk, hook, service):
    hook.answers["before"] = BLOCKED
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.images.generate(model="tiny", prompt=PROMPT, stream=True)
    assert refused.value.code == "moderation_blocked"
    assert service.requests == []


def test_a_blocked_picture_of_a_stream_is_a_nested_error(sdk, hook):
    hook.answers["after"] = BLOCKED
    events = []
    with pytest.raises(openai.APIError) as refused:
        events.extend(sdk.images.generate(model="tiny", prompt=PROMPT, stream=True, partial_images=2))
    assert events == []
    assert (refused.value.code, refused.value.type) == ("moderation_blocked", "image_generation_user_error")


def test_partial_pictures_are_withheld_and_not_even_made(sdk, hook, service):
    events = list(sdk.images.generate(model="tiny", prompt=PROMPT, stream=True, partial_images=3))
    assert [event.type for event in events] == ["image_generation.completed"]
    assert service.requests[0].images[0].previews == 0
    assert hook.stages() == ["before", "after"]


@using(moderation_partial_images="check")
def test_partial_pictures_are_checked_where_the_operator_wants_them(sdk, hook):
    events = list(sdk.images.generate(model="tiny", prompt=PROMPT, stream=True, partial_images=2))
    kinds = [event.type.partition(".")[2] for event in events]
    assert kinds[-1] == "completed"  # none comes after it, however late it was allowed
    assert hook.stages() == ["before", "after", "after", "after"]
    hook.answers["after"] = BLOCKED
    with pytest.raises(openai.APIError) as refused:
        list(sdk.images.generate(model="tiny", prompt=PROMPT, stream=True, partial_images=2))
    assert refused.value.code == "moderation_blocked"


@using(moderation_stages=["before"])
def test_only_what_was_sent(sdk, hook):
    events = list(sdk.images.generate(model="tiny", prompt=PROMPT, stream=True, partial_images=2))
    assert len(events) == 3
    assert hook.stages() == ["before"]


@using(moderation_stages=["after"])
def test_only_what_was_made(sdk, hook):
    sdk.images.generate(model="tiny", prompt=PROMPT)
    assert hook.stages() == ["after"]


FAILURES = [
    (500, "it answered with status 500; 200 is wanted"),
    (302, "it answered with status 302; 200 is wanted"),
    (b"no json", 'its answer is not {"allowed": true} or'),
    ({"allowed": PROMPT}, 'its answer is not {"allowed": true} or'),
    ({}, 'its answer is not {"allowed": true} or'),
    (b"x" * 70_000, "its answer has more than 65536 bytes"),
    ("drop", "cannot be reached: RemoteProtocolError"),
]


async def test_without_a_verdict_nothing_passes(client, hook, service, caplog):
    for stage, computed in (("before", 0), ("after", len(FAILURES))):
        hook.answers = {"before": ALLOWED, "after": ALLOWED}
        for answer, words in FAILURES:
            hook.answers[stage] = answer
            refused = await client.post(URL, json={"prompt": PROMPT})
            error = refused.json()["error"]
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert (error["code"], error["type"]) == ("moderation_unavailable", "service_unavailable_error")
            assert f"{refused.headers['x-request-id']}: moderation hook ({stage}): {words}" in caplog.text
        assert len(service.requests) == computed


@using(moderation_on_failure="allow")
async def test_without_a_verdict_everything_passes_where_the_operator_says_so(client, hook, caplog):
    for answer, words in FAILURES:
        hook.answers = {"before": answer, "after": answer}
        allowed = await client.post(URL, json={"prompt": PROMPT})
        assert allowed.status_code == 200
        for stage in ("before", "after"):
            assert f"{allowed.headers['x-request-id']}: moderation hook ({stage}): {words}" in caplog.text
    assert caplog.text.count("let through") == 2 * len(FAILURES)
    hook.answers["before"] = BLOCKED  # a verdict is one even so
    assert (await client.post(URL, json={"prompt": PROMPT})).json()["error"]["code"] == "moderation_blocked"


@using(moderation_timeout_seconds=0.1)
def test_a_hook_that_hangs(sdk, hook, service, caplog):
    hook.answers["before"] = "hang"
    with pytest.raises(openai.InternalServerError) as refused:
        sdk.images.generate(model="tiny", prompt=PROMPT, stream=True)
    assert refused.value.code == "moderation_unavailable"
    assert "moderation hook (before): no answer within 0.1 s; refused" in caplog.text
    assert service.requests == []


async def test_a_hook_that_is_not_there(connect, caplog):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
    response = await connect(moderation_url=nowhere).post(URL, json={"prompt": PROMPT})
    assert response.json()["error"]["code"] == "moderation_unavailable"
    assert "moderation hook (before): cannot be reached: ConnectError; refused" in caplog.text


async def test_a_client_that_leaves_is_no_longer_asked_about(client, hook, service):
    hook.answers["before"] = "hang"
    call = asyncio.create_task(client.post(URL, json={"prompt": PROMPT}))
    assert await asyncio.to_thread(hook.asked.wait, 10)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    hook.never.set()
    assert service.requests == []
    assert {task.get_name() for task in asyncio.all_tasks()}.isdisjoint({"generate", "watch client"})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"moderation_url": "ftp://x"}, "MODERATION_URL: 'ftp://x' is no address"),
        ({"moderation_url": "http://me:word@host/"}, "must hold no user name or password: use moderation_secret"),
        ({"moderation_secret": SECRET}, "moderation_secret needs moderation_url"),
        ({"moderation_stages": []}, "MODERATION_STAGES"),
        ({"moderation_on_failure": "open"}, "MODERATION_ON_FAILURE"),
    ],
)
def test_settings_that_make_no_sense_stop_the_start(given, words):
    with pytest.raises(InvalidSettings, match=words):
        load_settings(**given)

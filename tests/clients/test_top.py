"""``disagfusion top``: the stream put together again, drawn, and asked for anew when it is lost."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from rich.console import Console

from clients.events import Malformed
from clients.top import command
from clients.top.command import KEY, main
from clients.top.drawing import screen
from clients.top.state import Frames, Pipeline

URL = "http://127.0.0.1:9/v1"
SERVER = {
    "name": "gpu-1",
    "roles": ["encoder", "dit"],
    "switching_to": ["dit"],
    "busy": 0.52,
    "jobs": [
        {"job": "req_0123456789abcdef/dit0", "state": "running", "steps": "7/12"},
        {"job": "req_2/encode", "state": "fetching", "steps": None},
    ],
    "suspect": True,
    "leaving": False,
    "pinned": False,
    "why_set_aside": "",
    "speed_factor": 1.6,
}
STAGE = {"waiting": 3, "computing": 1, "committed": 1, "serving": 1, "handed_jobs": 2, "handed_bytes": 8_000_000}
REQUEST = {
    "model": "m@1",
    "pictures": 2,
    "arrived": 100.0,
    "state": "done",
    "predicted": 1.25,
    "took": 1.5,
    "why": "",
}
WHOLE = {
    "reset": True,
    "rows": {
        "servers": {"gpu-1/a": SERVER},
        "stages": {f"m@1 {role}": {"model": "m@1", "role": role, **STAGE} for role in ("encoder", "dit", "decoder")},
        "requests": {"req_1": REQUEST, "req_2": {**REQUEST, "arrived": 101.0, "state": "rejected", "why": "too late"}},
        "news": {
            "9": {"at": 1.0, "kind": "joined", "server": "gpu-1", "text": "came with dit"},
            "10": {"at": 2.0, "kind": "roles", "server": "gpu-1", "text": "changes to dit: [red]demand\x1b[2J"},
        },
        "plans": {"m@1": {"verdict": "best as it is"}},
    },
    "complete": True,
    "now": 102.0,
}


def whole(**changes: object) -> dict[str, Any]:
    return copy.deepcopy(WHOLE) | changes


def event(told: object) -> bytes:
    return f"event: pipeline\ndata: {json.dumps(told)}\n\n".encode()


def drawn(pipeline: Pipeline) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(screen(pipeline, "here"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_frames_come_in_any_chunks() -> None:
    words = b": hello\n\n" + event({"now": 1}) + event({"now": 2, "text": "\u2028"})
    for size in (1, 7, len(words)):
        frames = Frames()
        chunks = [words[at : at + size] for at in range(0, len(words), size)]
        assert [told["now"] for chunk in chunks for told in frames.feed(chunk)] == [1, 2]


@pytest.mark.parametrize("data", [b"data: {\n\n", b"data: 3\n\n"])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed, match="no JSON object"):
        list(Frames().feed(data))


def test_differences_are_put_together() -> None:
    pipeline = Pipeline()
    pipeline.take(whole(complete=False))
    assert not pipeline.is_complete
    pipeline.take({"complete": True, "now": 103.0})
    pipeline.take({"changes": {"servers": {"gpu-1/a": {"busy": 1.0}, "nobody": {"busy": 1.0}}}})
    pipeline.take({"rows": {"servers": {"gpu-2/b": {**SERVER, "name": "gpu-2"}}}, "gone": {"requests": ["req_1"]}})
    assert pipeline.is_complete
    assert {key: row["busy"] for key, row in pipeline.rows("servers").items()} == {"gpu-1/a": 1.0, "gpu-2/b": 0.52}
    assert list(pipeline.rows("requests")) == ["req_2"]
    pipeline.take({"reset": True})
    assert not pipeline.is_complete
    assert not pipeline.rows("servers")


def test_all_of_it_is_drawn() -> None:
    pipeline = Pipeline()
    pipeline.take(whole())
    text = drawn(pipeline)
    for words in (
        "dit      3        1          1     1        2 × 4 MB",
        "roles: best as it is",
        "encoder dit → dit",
        "█████░░░░░  52%",
        "req_01234567… dit0 7/12",
        "req_2 encode",
        "suspect; 1.6 × as slow as its class",
        "m × 2",
        "1.25 s     1.50 s",
        "too late",
    ):
        assert words in text, text
    assert text.index("req_2    m × 2") < text.index("req_1    m × 2"), "the latest first"
    assert text.index("changes to dit") < text.index("came with dit")


def test_what_servers_say_formats_nothing() -> None:
    pipeline = Pipeline()
    pipeline.take(whole())
    assert "[red]demand�[2J" in drawn(pipeline)


def test_a_stage_without_anything_is_drawn() -> None:
    pipeline = Pipeline()
    pipeline.take({"complete": True})
    assert "what happened" in drawn(pipeline)


# --- the stream -------------------------------------------------------------------------------------------------------


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[httpx.Request]]:
    """Has the gateway give these answers, one after the other; what it was asked."""
    monkeypatch.setenv(KEY, "the-admin-key")

    def give(*given: httpx.Response | Exception) -> list[httpx.Request]:
        asked: list[httpx.Request] = []
        rest = iter(given)

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(request)
            told = next(rest)
            if isinstance(told, Exception):
                raise told
            return told

        monkeypatch.setattr(httpx, "stream", httpx.Client(transport=httpx.MockTransport(answer)).stream)
        return asked

    return give


def stream(*told: object) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=b"".join(map(event, told)))


def refusal(status: int, code: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": "no", "code": code}})


def test_once_prints_the_state_and_ends(
    answers: Callable[..., list[httpx.Request]], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = answers(stream(WHOLE))
    assert main(["--once", "--url", URL]) == 0
    assert "best as it is" in capsys.readouterr().out
    assert str(asked[0].url) == "http://127.0.0.1:9/admin/pipeline"
    assert asked[0].headers["authorization"] == "Bearer the-admin-key"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refusal(401, "invalid_api_key"), f"wants its admin key: {KEY} is not the gateway's"),
        (refusal(404, "unknown_url"), f"started without {KEY} or with DISAGFUSION_PAGE=false"),
        (httpx.Response(404, text="nginx"), "no DisagFusion gateway is here: it answers 404"),
        (httpx.Response(200, text="<html>"), "it answers, but not with a stream of events"),
        (refusal(503, "overloaded"), "503 overloaded: no"),
        (httpx.ConnectError("refused"), "no gateway answers here (refused)"),
        (httpx.ReadTimeout(""), "no answer for 30 s"),
        (stream({"rows": {}}), "the stream ended"),
    ],
)
def test_what_goes_wrong_is_said(
    answer: httpx.Response | Exception,
    words: str,
    answers: Callable[..., list[httpx.Request]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers(answer)
    assert main(["--once", "--url", URL]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("key", "words"), [("", f"{KEY} is not set"), ("schlüssel", "characters that no key has")])
def test_a_key_that_is_none_is_said(
    key: str,
    words: str,
    answers: Callable[..., list[httpx.Request]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers(refusal(401, "invalid_api_key"))
    monkeypatch.setenv(KEY, key)
    assert main(["--once", "--url", URL]) == 1
    assert words in capsys.readouterr().err


def test_without_a_terminal_it_says_how_to_have_one_state(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--url", URL])
    assert ended.value.code == 2
    assert "--once prints the state" in capsys.readouterr().err


def test_a_lost_stream_is_asked_for_again(answers: Callable[..., list[httpx.Request]]) -> None:
    asked = answers(
        stream(WHOLE),
        httpx.ConnectError("refused"),
        refusal(503, "starting"),
        stream(WHOLE),
        httpx.ConnectError("gone"),
    )
    console = Console(file=io.StringIO(), force_terminal=True, width=140, height=60)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        command._watch("http://g", console, pause)
    assert len(asked) == 5
    assert pauses == [0.5, 1.0, 2.0, 0.5, 1.0], "anew from the shortest, once the state was seen"
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "no gateway answers here (refused); asked again in 1 s" in text
    assert "best as it is" in text.rpartition("asked again")[2], "what it was stays on the screen"


def test_a_first_failure_is_not_waited_out(answers: Callable[..., list[httpx.Request]]) -> None:
    answers(httpx.ConnectError("refused"))
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(httpx.ConnectError):
        command._watch("http://g", console, lambda _: pytest.fail("waited"))


def test_a_key_that_is_withdrawn_ends_it(answers: Callable[..., list[httpx.Request]]) -> None:
    answers(stream(WHOLE), refusal(401, "invalid_api_key"))
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(command.Useless):
        command._watch("http://g", console, lambda _: None)

"""Lines for people and for programs."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider

from wire.logs import Format, log_to_stderr, note_about


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def written(form: Format, stream: io.StringIO) -> io.StringIO:
    log_to_stderr("gpu%1", "info", form, stream)
    return stream


def test_text_is_coloured_on_a_terminal_alone() -> None:
    terminal = written("text", Terminal())
    logging.getLogger("x").warning("watch %s", "out")
    logging.getLogger("x").info("fine")
    logging.getLogger("x").debug("nobody asked")
    warning, info = terminal.getvalue().splitlines()
    assert warning.startswith("\x1b[33m")
    assert warning.endswith("WARNING gpu%1 watch out\x1b[0m")
    assert info.endswith("INFO    gpu%1 fine")
    assert "\x1b" not in info


def test_text_elsewhere_is_plain() -> None:
    stream = written("text", io.StringIO())
    logging.getLogger("x").error("bad")
    assert "\x1b" not in stream.getvalue()


def test_json_is_an_object_on_each_line_with_what_the_record_is_about() -> None:
    stream = written("json", io.StringIO())
    with TracerProvider().get_tracer("test").start_as_current_span("request") as span:
        logging.getLogger("x").info("two\nlines", extra={"about": {"request_id": "req_1", "status": 200}})
    told = json.loads(stream.getvalue())
    assert stream.getvalue().count("\n") == 1
    assert told.pop("time").endswith("+00:00")
    assert told == {
        "level": "info",
        "process": "gpu%1",
        "logger": "x",
        "message": "two\nlines",
        "trace_id": f"{span.get_span_context().trace_id:032x}",
        "span_id": f"{span.get_span_context().span_id:016x}",
        "request_id": "req_1",
        "status": 200,
    }


def test_json_has_tracebacks() -> None:
    stream = written("json", io.StringIO())
    try:
        int("nonsense")
    except ValueError:
        logging.getLogger("x").exception("it broke")
    assert "ValueError: invalid literal" in json.loads(stream.getvalue())["exception"]


def test_the_lines_of_a_thread_say_what_it_is_about() -> None:
    stream = written("json", io.StringIO())

    def work() -> None:
        note_about({"request_id": "req_1", "stage": "dit"})
        logging.getLogger("x").info("in it")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    logging.getLogger("x").info("outside")
    inside, outside = map(json.loads, stream.getvalue().splitlines())
    assert (inside["request_id"], inside["stage"]) == ("req_1", "dit")
    assert "request_id" not in outside

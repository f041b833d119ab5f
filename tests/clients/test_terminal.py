"""What is drawn in a terminal: progress, previews."""

from __future__ import annotations

import base64
import io
import re

import pytest

from clients.events import Admitted, Completed, Step, Waiting
from clients.progress import Progress
from clients.terminal import CLEAR, KITTY_CHUNK, Graphics, StatusLine, graphics, inline


def test_progress_tells_admission_and_steps() -> None:
    progress = Progress(2)
    said = [progress.line(0.0)]
    for news in (Admitted(4.0), Step(0, 3, 6), Step(0, 6, 6), Step(1, 5, 6), Completed(0, b""), Completed(1, b"")):
        progress.hear(news, 1.0)
        said.append(progress.line(1.0))
    assert said == [
        "sent  0 of 2 pictures  0.0 s",
        "admitted  0 of 2 pictures  1.0 s of about 4.0 s",
        "[######------------------] step 3/12  0 of 2 pictures  1.0 s of about 4.0 s",
        "[############------------] step 6/12  0 of 2 pictures  1.0 s of about 4.0 s",
        "[######################--] step 11/12  0 of 2 pictures  1.0 s of about 4.0 s",
        "[######################--] step 11/12  1 of 2 pictures  1.0 s of about 4.0 s",
        "[########################] step 12/12  2 of 2 pictures  1.0 s of about 4.0 s",
    ]


def test_progress_tells_the_place_in_the_queue_and_the_latest_prediction() -> None:
    progress = Progress(1)
    said = []
    for elapsed, news in enumerate((Admitted(9.0), Waiting(3, 12.5), Waiting(0, 6.0), Step(0, 1, 4)), 1):
        progress.hear(news, float(elapsed))
        said.append(progress.line(float(elapsed)))
    assert said == [
        "admitted  1.0 s of about 9.0 s",
        "waiting, 3 ahead  2.0 s of about 14.5 s",
        "waiting, next in line  3.0 s of about 9.0 s",
        "[######------------------] step 1/4  4.0 s of about 9.0 s",
    ]
    assert progress.predicted_seconds == 9.0, "what was promised at admission"


def test_a_picture_whose_steps_are_done_is_being_decoded_and_a_finished_one_has_taken_them_all() -> None:
    progress = Progress(1, steps={0: Step(0, 8, 8)})
    assert progress.line(1.0) == "[########################] step 8/8, decoding  1.0 s"
    progress = Progress(1, steps={0: Step(0, 3, 8)})
    progress.hear(Completed(0, b""), 1.0)
    assert progress.line(1.0) == "[########################] step 8/8  1.0 s"


def test_a_line_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    drawn = io.StringIO()
    StatusLine(drawn, live=True).show("x" * 40)
    assert drawn.getvalue() == CLEAR + "x" * 19


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"TERM": "xterm-256color"}, Graphics.NONE),
        ({"TERM_PROGRAM": "iTerm.app"}, Graphics.ITERM),
        ({"TERM_PROGRAM": "WezTerm"}, Graphics.ITERM),
        ({"TERM": "xterm-kitty"}, Graphics.KITTY),
        ({"TERM": "xterm-kitty", "TMUX": "1"}, Graphics.NONE),
        ({"TERM": "screen", "KITTY_WINDOW_ID": "1"}, Graphics.NONE),
    ],
)
def test_terminals_are_known_by_their_environment(environment: dict[str, str], found: Graphics) -> None:
    assert graphics(environment) is found


def test_pictures_are_sent_as_the_terminals_read_them() -> None:
    png = b"\x89PNG" + bytes(KITTY_CHUNK)
    shown = inline(png, Graphics.KITTY)
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", shown)
    assert [head for head, _ in parts] == ["a=T,f=100,q=2,r=12,m=1", "m=0"]
    assert all(len(data) <= KITTY_CHUNK for _, data in parts)
    assert base64.b64decode("".join(data for _, data in parts)) == png
    assert inline(b"\xff\xd8 a JPEG", Graphics.KITTY) == ""
    assert inline(b"abc", Graphics.ITERM) == "\x1b]1337;File=inline=1;size=3;height=12:YWJj\a\n"
    assert inline(png, Graphics.NONE) == ""

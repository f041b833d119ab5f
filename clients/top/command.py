"""Shows stage servers, queues, requests and what happened as they are, until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator

import httpx
from rich.console import Console
from rich.live import Live

from clients import terminal
from clients.address import DEFAULT, base_url
from clients.api import refusal
from clients.events import Malformed, Refused
from clients.making import INTERRUPTED
from clients.top.drawing import screen
from clients.top.state import Frames, Pipeline

KEY = "DISAGFUSION_ADMIN_KEY"
SILENCE_SECONDS = 30.0
"""The gateway says how busy servers are every five seconds."""
FIRST_DELAY, LAST_DELAY = 0.5, 10.0
"""Until a lost stream is asked for again."""
EPILOG = f"{KEY} is sent as the admin key; OPENAI_BASE_URL is the default of --url."


class Useless(Exception):
    """There is no point in asking again; the text says why."""


def main(argv: list[str], program: str = "disagfusion") -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog=f"{program} top", description=__doc__, epilog=EPILOG)
    parser.add_argument("--url", type=base_url, default=DEFAULT, help="of the API (default: %(default)s)")
    parser.add_argument("--once", action="store_true", help="print the state and end, for scripts")
    args = parser.parse_args(argv)
    if not args.once and not terminal.is_live(sys.stdout, os.environ):
        parser.error("this is no terminal: --once prints the state and ends")
    url, console = args.url.removesuffix("/v1"), Console()
    try:
        if args.once:
            pipeline = next(states(url, Pipeline()))
            console.print(screen(pipeline, url))
        else:
            _watch(url, console)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (Useless, Malformed, Refused, httpx.HTTPError) as error:
        print(f"{url}: {explained(error)}", file=sys.stderr)
        return 1
    return 0


def _watch(url: str, console: Console, pause: Callable[[float], None] = time.sleep) -> None:
    """Never returns. Raises ``Useless``, and whatever goes wrong before the state was seen once."""
    pipeline, delay, was_seen = Pipeline(), FIRST_DELAY, False
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            try:
                for state in states(url, pipeline):
                    delay, was_seen = FIRST_DELAY, True
                    live.update(screen(state, url), refresh=True)
            except (Malformed, Refused, httpx.HTTPError) as error:
                if not was_seen:
                    raise
                title = f"{url}: {explained(error)}; asked again in {delay:g} s. This is what it was:"
                live.update(screen(pipeline, title), refresh=True)
            pause(delay)
            delay = min(2 * delay, LAST_DELAY)


def states(url: str, pipeline: Pipeline) -> Iterator[Pipeline]:
    """``pipeline``, each time that it is whole and has changed.

    Raises ``Useless``, ``Refused``, ``Malformed`` or ``httpx.HTTPError``.
    """
    frames = Frames()
    with httpx.stream("GET", f"{url}/admin/pipeline", headers=_headers(), timeout=SILENCE_SECONDS) as answer:
        if not answer.is_success:
            answer.read()
            raise _meaning(refusal(answer))
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            raise Useless("no DisagFusion gateway is here: it answers, but not with a stream of events")
        for chunk in answer.iter_bytes():
            for told in frames.feed(chunk):
                pipeline.take(told)
            if pipeline.is_complete:
                yield pipeline
    raise Malformed("the stream ended")


def explained(error: Exception) -> str:
    match error:
        case httpx.ConnectError():
            return f"no gateway answers here ({error})"
        case httpx.TimeoutException():
            return f"no answer for {SILENCE_SECONDS:g} s"
        case Refused():
            return f"{error.status} {error.code}: {error}"
    return str(error) or type(error).__name__


def _headers() -> dict[str, str]:
    """Raises ``Useless``."""
    key = os.environ.get(KEY, "")
    if not key.isascii() or not key.isprintable():
        raise Useless(f"{KEY} holds characters that no key has")
    return {"authorization": f"Bearer {key}"} if key else {}


def _meaning(refused: Refused) -> Exception:
    match refused.status, refused.code:
        case 401, _:
            given = "is not the gateway's" if os.environ.get(KEY) else "is not set"
            return Useless(f"the gateway wants its admin key: {KEY} {given}")
        case 404, "unknown_url":
            why = f"it was started without {KEY} or with DISAGFUSION_PAGE=false, or --url has a path too many"
            return Useless(f"this gateway shows nothing here: {why}")
        case status, _ if status < 500:
            return Useless(f"no DisagFusion gateway is here: it answers {status}")
    return refused

"""Sends one request, shows how far it is, and writes its pictures."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import httpx

from clients import terminal
from clients.api import Call, open_client, send
from clients.events import Completed, Malformed, News, Partial, Refused, Stages
from clients.progress import Progress
from clients.terminal import StatusLine

REDRAW_SECONDS = 0.2
INTERRUPTED = 130
"""What a shell sees of a program that SIGINT ended."""


@dataclass
class Made:
    """What ``--json`` tells."""

    files: list[dict[str, object]] = field(default_factory=list)
    seconds: float = 0.0
    predicted_seconds: float | None = None
    first_partial_seconds: float | None = None
    stages: list[tuple[str, float]] = field(default_factory=list)


def watched() -> bool:
    return terminal.is_live(sys.stderr, os.environ)


def make(args: argparse.Namespace, call: Call) -> int:
    """The exit status."""
    line = StatusLine(sys.stderr, live=watched())
    try:
        made = asyncio.run(_Making(args.output, call, line).run(args.url, args.timeout))
    except KeyboardInterrupt:
        return INTERRUPTED
    except (Refused, Malformed, httpx.HTTPError, TimeoutError, OSError) as error:
        print(complaint(error, args), file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(vars(made), indent=2))
    else:
        print(*(file["path"] for file in made.files), sep="\n")
        for stage, seconds in made.stages:
            print(f"  {stage:<24} {seconds:8.3f} s")
    return 0


class _Making:
    def __init__(self, output: Path, call: Call, line: StatusLine) -> None:
        self._output = output
        self._call = call
        self._line = line
        self._graphics = terminal.graphics(os.environ) if line.live else terminal.Graphics.NONE
        self._previews: set[Path] = set()
        self._made = Made()

    async def run(self, urls: Sequence[str], timeout_seconds: float) -> Made:
        progress = Progress(self._call.pictures)
        # The client comes first: it reads certificates for a third of a second, which is no time of the server's.
        async with open_client(timeout_seconds, urls) as client:
            start = perf_counter()
            drawing = asyncio.create_task(self._draw(progress, start), name="progress")
            try:
                async with asyncio.timeout(timeout_seconds), aclosing(send(client, urls[0], self._call)) as answer:
                    async for news in answer:
                        elapsed = perf_counter() - start
                        progress.hear(news, elapsed)
                        self._take(news, elapsed)
                        self._line.show(progress.line(perf_counter() - start))
            finally:
                drawing.cancel()
                self._line.clear()
                for path in self._previews:
                    path.unlink(missing_ok=True)
            self._made.seconds = perf_counter() - start
        self._made.predicted_seconds = progress.predicted_seconds
        return self._made

    def _take(self, news: News, elapsed: float) -> None:
        match news:
            case Partial(image, data):
                self._made.first_partial_seconds = self._made.first_partial_seconds or elapsed
                self._preview(image, data)
            case Completed(image, data, seed):
                self._keep(image, data, seed)
            case Stages(seconds):
                self._made.stages = list(seconds)

    async def _draw(self, progress: Progress, start: float) -> None:
        while self._line.live:
            self._line.show(progress.line(perf_counter() - start))
            await asyncio.sleep(REDRAW_SECONDS)

    def _preview(self, image: int, data: bytes) -> None:
        if shown := terminal.inline(data, self._graphics):
            self._line.above(shown)
            return
        path = self._path(image)
        path = path.with_name(f"{path.stem}.partial{path.suffix}")
        path.write_bytes(data)
        if path not in self._previews:
            self._previews.add(path)
            self._line.above(f"preview in {path}\n")

    def _keep(self, image: int, data: bytes, seed: int | None) -> None:
        """At once, so that a failure of the next picture costs this one nothing."""
        path = self._path(image)
        path.write_bytes(data)
        self._made.files.append({"path": str(path), "seed": seed})
        self._line.above(terminal.inline(data, self._graphics))

    def _path(self, image: int) -> Path:
        output = self._output
        return output if self._call.pictures == 1 else output.with_stem(f"{output.stem}-{image}")


def complaint(error: Exception, args: argparse.Namespace) -> str:
    """What ended a command, in one line for a person."""
    where = ", ".join(args.url)
    match error:
        case Refused(status=status, code=code, retry_after_seconds=retry):
            head = " ".join(part for part in ("" if status == 200 else str(status), code) if part)
            again = f" (to be tried again in {retry:g} s)" if retry is not None else ""
            return f"{head}: {error}{again}"
        case Malformed():
            return f"{where} sent {error}"
        case TimeoutError() | httpx.TimeoutException():
            return f"{where} took longer than --timeout {args.timeout:g} s"
        case OSError(filename=str() | Path()):
            return f"{error.filename} cannot be written: {error.strerror}"
    return f"{where} cannot be reached: {error or type(error).__name__}"

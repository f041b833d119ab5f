"""The processes that decode: a few, each started when it is first needed and again when it died.

A picture is decoded outside the gateway's process for two reasons. Pillow decodes a WebP without letting other threads
run, 0.6 s for 50 megapixels, in which the gateway would answer nobody. And what a hostile file does to a decoder, it
does to a process that can be killed: when it takes too long, takes too much memory, or nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from gateway.decoding.frames import receive, send
from gateway.decoding.pictures import BadPicture, Decoding, InputPicture

DECODING_AT_ONCE = 2
"""Each may take 18 bytes per pixel while it lasts (a lossless WebP with alpha does; a JPEG takes 3)."""

DECODE_SECONDS = 60.0
"""For one picture. 50 megapixels take 0.3 to 3 s."""

BYTES_PER_PIXEL = 32
PROCESS_BYTES = 512 << 20
"""Of address space: the interpreter, the file, what is made of it."""

TRIES = 2
"""A process may be killed for reasons that are not the picture's; one that dies of the same picture twice is not."""

ROOT = Path(__file__).parents[2]
"""Where the package ``gateway`` lies."""

log = logging.getLogger(__name__)


class NoDecoder(Exception):
    """No process can be started. The text is for the log."""


class Decoders:
    """Belongs to no event loop. To be closed."""

    def __init__(
        self,
        max_pixels: int,
        size: int = DECODING_AT_ONCE,
        seconds: float = DECODE_SECONDS,
        process_bytes: int = PROCESS_BYTES,
    ) -> None:
        """``max_pixels``: of any picture that is to be decoded."""
        max_memory = max_pixels * BYTES_PER_PIXEL + process_bytes
        self._workers = [_Worker(max_memory, seconds) for _ in range(size)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()  # so that a second is started when there is need
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(size, "decode picture")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def processes(self) -> list[int]:
        """Ids of those that run."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    async def decode(self, data: bytes, how: Decoding) -> InputPicture:
        """Raises ``BadPicture`` or ``NoDecoder``. Cancelled, the process that is at it is killed."""
        task = _Task()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, task, data, how)
        except asyncio.CancelledError:
            task.give_up()
            raise

    def _decode(self, task: _Task, data: bytes, how: Decoding) -> InputPicture:
        """On a thread, which mostly waits for the process."""
        worker = self._idle.get()
        try:
            for _ in range(TRIES):
                if task.is_over:
                    raise _GivenUp
                worker.start()
                with task.on(worker):
                    try:
                        return worker.decode(data, how)
                    except TimeoutError:
                        raise BadPicture("The picture takes too long to decode.") from None
                    except (OSError, EOFError, ValueError) as error:
                        log.info("a process that decodes pictures has ended: %s", error)
            log.warning("a picture of %d bytes ended two processes that were to decode it", len(data))
            raise BadPicture("The picture is damaged: it cannot be decoded.")
        finally:
            self._idle.put(worker)


class _GivenUp(Exception):
    """Nobody waits any more; nobody sees this either."""


class _Task:
    """One picture, while somebody waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self.is_over = False

    @contextmanager
    def on(self, worker: _Worker) -> Iterator[None]:
        with self._lock:
            if self.is_over:
                raise _GivenUp
            self._worker = worker
        try:
            yield
        finally:
            with self._lock:
                self._worker = None

    def give_up(self) -> None:
        with self._lock:
            self.is_over = True
            if self._worker is not None:
                self._worker.kill()


class _Worker:
    """One process, or the place for one."""

    def __init__(self, max_memory: int, seconds: float) -> None:
        self._max_memory = max_memory
        self._seconds = seconds
        self._is_closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Unless it runs. Raises ``NoDecoder``."""
        if self._process is not None and self._process.poll() is None:
            return
        if self._is_closed:
            raise NoDecoder("the gateway is about to end")
        self._clear()
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                given = (str(theirs.fileno()), str(self._max_memory))
                self._process = subprocess.Popen(  # noqa: S603 # our own module
                    [sys.executable, "-m", "gateway.decoding.worker", *given],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    cwd=ROOT,
                    start_new_session=True,  # Ctrl-C in the terminal reaches the gateway alone
                )
        except OSError as error:
            raise NoDecoder(f"a process that decodes pictures cannot be started: {error}") from error
        ours.settimeout(self._seconds)
        self._socket = ours

    def decode(self, data: bytes, how: Decoding) -> InputPicture:
        """Raises ``BadPicture``; anything else means that the process is gone."""
        assert self._socket is not None  # noqa: S101 # it was started
        try:
            send(self._socket, asdict(how), data)
            # Pixels of the picture and its mask, hardly compressed.
            told, pieces = receive(self._socket, 5 * how.shrink_to + (1 << 20))
        except BaseException:
            self._clear()
            raise
        if (refused := told.get("refused")) is not None:
            if told["why"]:
                log.info("a picture cannot be read: %s", told["why"])
            raise BadPicture(refused)
        width, height = told["size"]
        png, *masks = pieces
        return InputPicture(png, (width, height), masks[0] if masks else None)

    def kill(self) -> None:
        """From any thread: whoever waits for it learns that it is gone."""
        process = self._process  # once: its own thread may take note of the end just now
        if process is not None:
            process.kill()

    def close(self) -> None:
        self._is_closed = True
        self.kill()

    def _clear(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5.0)
        self._process = self._socket = None

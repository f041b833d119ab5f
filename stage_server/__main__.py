"""``python -m stage_server``: a process that serves stages of one model. See ``--help``."""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":  # what is imported below takes a second or more, in which Ctrl-C is a clean end as well
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from stage_server.command_line import InvalidSettings
from stage_server.data.frames import keep_frames
from stage_server.data.holder import BindError
from stage_server.engine.base import LoadError
from stage_server.profiling.settings import ignored_variables
from stage_server.runtime.ask import Unwelcome
from stage_server.runtime.control import BadEndpoint
from stage_server.runtime.device import ServersOfOneDevice
from stage_server.runtime.guard import loop_guarded
from stage_server.runtime.watch import FIRST_TIME
from stage_server.settings import Settings, read_settings
from stage_server.startup import assembled
from wire.errors import USER_MISTAKE
from wire.logs import log_to_stderr
from wire.telemetry import BadExporter, configure, shut_down

SWITCH_SECONDS = 0.001
"""After which a thread that computes lets another run. At Python's 5 ms every hop of a message between threads may take
that long, and a hand-off has several."""

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None, program: str = "python -m stage_server") -> int:
    """The exit status: 0 after a regular end, 2 for what the operator has to put right, 1 for anything else."""
    for number in (signal.SIGTERM, signal.SIGINT):  # until the server runs there is nothing to drain
        signal.signal(number, lambda *_: sys.exit(0))
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if given[:1] == ["profile"]:
            return _profile(given[1:], program)
        if given[:1] == ["memory"]:
            return _memory(given[1:], program)
        if given[:1] == ["relay"]:
            return _relay(given[1:], program)
        settings = read_settings(given, program)
        log_to_stderr(settings.name or "+".join(settings.role), settings.log_level, settings.log_format)
        for line in ignored_variables():
            log.warning("%s", line)
        configure("stage_server")
        return _run(settings)
    except (InvalidSettings, BadExporter, LoadError, BindError, BadEndpoint, Unwelcome) as error:
        print(f"stage_server: {error}", file=sys.stderr)  # noqa: T201  # this is its way to speak to the operator
        return USER_MISTAKE


def _profile(arguments: Sequence[str], program: str) -> int:
    # Imported here: a server has no need of it.
    from stage_server.profiling.command import run

    run(arguments, program)
    return 0


def _memory(arguments: Sequence[str], program: str) -> int:
    from stage_server.profiling.memory import run  # likewise

    run(arguments, program)
    return 0


def _relay(arguments: Sequence[str], program: str) -> int:
    # Imported here: a server has no need of it.
    from stage_server.relay.command import main as relay

    return relay(arguments, program)


def _run(settings: Settings) -> int:
    keep_frames()
    with assembled(settings) as server, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        status = runner.run(_serve(server, settings.stuck_seconds * FIRST_TIME))
    if not server.idle:
        _vanish(status)
    return status


async def _serve(server: ServersOfOneDevice, patience: float) -> int:
    sys.setswitchinterval(SWITCH_SECONDS)
    threading.excepthook = server.thread_died
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.terminate)
    async with loop_guarded(patience):
        return await server.run()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, whose turns take less than half as long as asyncio's; there is none for Windows."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _vanish(status: int) -> NoReturn:
    """A thread computes, perhaps for ever: the interpreter's own end, or the device's driver, would wait for it."""
    shut_down()
    logging.shutdown()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())

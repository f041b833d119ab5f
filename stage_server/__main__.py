"""``python -m stage_server``: a process that serves stages of one model. See ``--help``."""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":  # what is imported below takes a second or more, in which Ctrl-C is a clean end as well
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))

import asyncio
import logging
import threading
from collections.abc import Sequence

from stage_server.data.holder import BindError
from stage_server.engine.base import LoadError
from stage_server.runtime.ask import Unwelcome
from stage_server.runtime.control import BadEndpoint
from stage_server.runtime.server import StageServer
from stage_server.settings import InvalidSettings, Settings, ignored_variables, read_settings
from stage_server.startup import assembled
from wire.errors import USER_MISTAKE
from wire.telemetry import BadExporter, configure

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 after a regular end, 2 for what the operator has to put right, 1 for anything else."""
    for number in (signal.SIGTERM, signal.SIGINT):  # until the server runs there is nothing to drain
        signal.signal(number, lambda *_: sys.exit(0))
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if given[:1] == ["profile"]:
            return _profile(given[1:])
        settings = read_settings(given)
        _log_to_stderr(settings)
        for line in ignored_variables():
            log.warning("%s", line)
        configure("stage_server")
        with assembled(settings) as server:
            return asyncio.run(_serve(server))
    except (InvalidSettings, BadExporter, LoadError, BindError, BadEndpoint, Unwelcome) as error:
        print(f"stage_server: {error}", file=sys.stderr)  # noqa: T201  # this is its way to speak to the operator
        return USER_MISTAKE


def _profile(arguments: Sequence[str]) -> int:
    # Imported here: a server has no need of it.
    from stage_server.profiling.command import run

    run(arguments)
    return 0


async def _serve(server: StageServer) -> int:
    threading.excepthook = server.thread_died
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.terminate)
    return await server.run()


def _log_to_stderr(settings: Settings) -> None:
    name = settings.name or "+".join(settings.role)
    logging.basicConfig(
        level=settings.log_level.upper(), format=f"%(asctime)s %(levelname)-7s {name} %(message)s", stream=sys.stderr
    )


if __name__ == "__main__":
    sys.exit(main())

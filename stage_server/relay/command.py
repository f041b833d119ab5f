"""``python -m stage_server relay``: a relay as a process."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec

from stage_server.command_line import InvalidSettings
from stage_server.profiling.settings import ignored_variables
from stage_server.relay.relay import BACKLOG, CONNECTIONS_PER_STREAM, Relay
from stage_server.relay.settings import RelaySettings, read_relay_settings
from stage_server.setting_values import host_of
from wire.errors import USER_MISTAKE
from wire.logs import log_to_stderr
from wire.open_files import allow_files

OTHER_FILES = 64
"""Descriptors that are no connections."""

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None, program: str = "python -m stage_server") -> int:
    """Until SIGTERM or SIGINT. The exit status: 0, or 2 for what the operator has to put right."""
    try:
        return _run(sys.argv[1:] if arguments is None else arguments, program)
    except InvalidSettings as error:
        print(f"relay: {error}", file=sys.stderr)  # noqa: T201  # this is its way to speak to the operator
        return USER_MISTAKE


def _run(arguments: Sequence[str], program: str) -> int:
    settings = read_relay_settings(arguments, program)
    log_to_stderr("relay", settings.log_level, settings.log_format)
    for line in ignored_variables(RelaySettings):
        log.warning("%s", line)
    allow_files(CONNECTIONS_PER_STREAM * settings.max_streams + OTHER_FILES, "--max-streams")
    listener = _listen(settings.bind)
    asyncio.run(_serve(settings, listener))
    return 0


async def _serve(settings: RelaySettings, listener: socket.socket) -> None:
    relay = Relay(listener, settings.relay_key.get_secret_value(), max_streams=settings.max_streams)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with _counted(settings, relay):
        log.info("stage servers and gateways meet at %s:%d", *listener.getsockname()[:2])
        running = asyncio.create_task(relay.run(), name="relay")
        stopped = asyncio.create_task(stop.wait(), name="signal")
        await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running  # raises what ended it
        log.info("nothing new begins; %d streams may end within %g s", len(relay.streams), settings.drain_timeout)
        await relay.drain(settings.drain_timeout)


def _listen(bind: str) -> socket.socket:
    host, port = host_of(bind), bind.rpartition(":")[2]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, 0 if port == "*" else int(port)), family=family, backlog=BACKLOG)
    except OverflowError as error:
        raise InvalidSettings(f"--bind {bind} is no address: ports go from 1 to 65535, or * for any") from error
    except OSError as error:
        hint = "; choose another port, or * for any" if error.errno == errno.EADDRINUSE else ""
        why = str(error.strerror or error).partition(" (")[0]
        raise InvalidSettings(f"--bind {bind} cannot be listened at: {why}{hint}") from error


@contextmanager
def _counted(settings: RelaySettings, relay: Relay) -> Iterator[None]:
    """Raises ``InvalidSettings``."""
    if settings.metrics_port is None:
        yield
        return
    if find_spec("prometheus_client") is None:
        raise InvalidSettings("--metrics-port needs prometheus-client: pip install 'disagfusion[gateway]'")
    from stage_server.metrics import served  # here, as nothing else needs prometheus-client
    from stage_server.relay.metrics import registry

    with served(registry(relay), host_of(settings.bind), settings.metrics_port) as url:
        log.info("metrics at %s", url)
        yield

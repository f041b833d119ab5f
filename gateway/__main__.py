"""``python -m gateway``: serves the HTTP API and drives stage servers. See ``--help``."""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":  # what is imported below takes a second or more, in which Ctrl-C is a clean end as well
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))

import argparse
import asyncio
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from uvicorn.loops.auto import auto_loop_factory

from gateway.accounts.command import main as keys_command
from gateway.api.app import create_app
from gateway.api.http_protocol import HttpProtocol
from gateway.database.errors import DatabaseRefused
from gateway.jobs.owner import Owner
from gateway.settings import InvalidSettings, Settings, ignored_variables, load_settings
from gateway.shell.assembly import Gateway
from gateway.shell.garbage import spare_pauses
from gateway.shell.local import BUNDLED_MODEL, LocalStageFailed, LocalStages
from gateway.stages.sockets import BindError
from wire.errors import USER_MISTAKE
from wire.telemetry import BadExporter, configure

GRACE_SECONDS = 5
"""For requests under way when the gateway is told to end."""

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 # compared with, not bound
"""Every address of this machine → one of them that can be called."""

log = logging.getLogger("gateway")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 after a regular end, 2 for what the operator has to put right, 1 for anything else."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["keys"]:
        return keys_command(words[1:])
    given = {name: value for name, value in vars(_parser().parse_args(words)).items() if value is not None}
    local = given.pop("local")
    status = 0
    if local:
        given.setdefault("control_bind", "tcp://127.0.0.1:*")
    try:
        settings = load_settings(**given)
        _log_to_stderr(settings)
        for line in ignored_variables():
            log.warning("%s", line)
        configure("gateway")
        with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
            runner.run(_serve(settings, local=local))
    except* (InvalidSettings, BadExporter, BindError, DatabaseRefused, LocalStageFailed) as group:
        _complain(group)
        status = USER_MISTAKE
    return status


async def _serve(settings: Settings, *, local: bool) -> None:
    listener = _listen(settings)
    gateway = Gateway(settings)
    await gateway.open()
    owner = Owner(settings.state_folder())
    stages = LocalStages(gateway.pool.endpoint) if local else None
    app = create_app(
        gateway.dispatcher,
        settings,
        operator=gateway.operator,
        storage=gateway.storage,
        room=gateway.room,
        keys=gateway.keys,
        limiter=gateway.limiter,
        meter=gateway.meter,
        once=gateway.once,
        database=gateway.database,
        owner=owner,
    )
    server = _Server(
        uvicorn.Config(
            app,
            http=HttpProtocol,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # ``gateway.api.proxies`` reads them, from those who are trusted
            lifespan="on",
            log_config=None,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )
    spare_pauses()
    with owner:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(gateway.run(), name="gateway")]
            running.append(tasks.create_task(_announce(gateway, listener), name="announcement"))
            if stages is not None:
                running.append(tasks.create_task(stages.run(), name="local stages"))
            running.append(tasks.create_task(app.state.api.desk.run(), name="jobs"))
            await server.serve(sockets=[listener])
            for task in reversed(running):  # jobs are given back, and stage servers say goodbye, while we still listen
                task.cancel()
                await asyncio.wait([task])


async def _announce(gateway: Gateway, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    log.info("listening at %s; stage servers connect to %s", _url(host, port), gateway.pool.endpoint)
    await gateway.dispatcher.until_ready()
    try:
        # for the person at the terminal
        print(example(_url(_WILDCARDS.get(host, host), port), keys=gateway.keys.required), flush=True)  # noqa: T201
    except BrokenPipeError:  # whoever read our output has gone, which is no reason to stop serving
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def example(url: str, *, keys: bool) -> str:
    """A first request to copy. A key is the reader's to fill in: what is printed ends up in logs."""
    body = '{"prompt": "a large red circle in the center on a white background", "response_format": "url"}'
    headers = "-H 'content-type: application/json'"
    if keys:
        headers += ' -H "authorization: Bearer $OPENAI_API_KEY"'
    return f"Ready at {url}. For example:\n  curl {url}/v1/images/generations {headers} -d '{body}'"


class _Server(uvicorn.Server):
    """Leaves no signal to be raised again at the end: Ctrl-C is a regular end here."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host.strip("[]"), settings.port), family=family, backlog=2048)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        why = str(error.strerror).partition(" (")[0]
        raise BindError(f"cannot listen at {where}: {why}; choose another --host or --port") from error


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _complain(group: BaseExceptionGroup[BaseException]) -> None:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            _complain(error)
        else:
            print(f"gateway: {error}", file=sys.stderr)  # noqa: T201 # this is its way to speak to the operator


def _log_to_stderr(settings: Settings) -> None:
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)-7s gateway %(message)s", stream=sys.stderr
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gateway",
        description="Serves OpenAI's image API and drives the stage servers that connect to it.",
        epilog="'python -m gateway keys' makes, lists and revokes API keys: see its --help. "
        "Every setting of gateway/settings.py can be given as DISAGFUSION_<SETTING>; the command line wins.",
    )
    parser.add_argument("--local", action="store_true", help=f"also start stage servers here, with {BUNDLED_MODEL}")
    parser.add_argument("--host", help="address of the HTTP API (default: 127.0.0.1)")
    parser.add_argument("--port", help="its port, 0 for any (default: 8000)")
    parser.add_argument("--control-bind", metavar="tcp://HOST:PORT", help="where stage servers connect to")
    parser.add_argument("--data-bind", metavar="tcp://HOST:PORT", help="where they fetch uploaded pictures")
    parser.add_argument("--data-advertise", metavar="tcp://HOST:PORT", help="how they reach that, if not as it is")
    parser.add_argument("--allow-plaintext", action="store_true", default=None, help="bind beyond loopback unencrypted")
    parser.add_argument("--allow-anonymous", action="store_true", default=None, help="serve callers without API keys")
    parser.add_argument("--log-level", help="debug, info, warning or error (default: info)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

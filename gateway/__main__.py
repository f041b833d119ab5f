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
import secrets
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr
from uvicorn.loops.auto import auto_loop_factory

from gateway.accounts.command import main as keys_command
from gateway.api.app import create_app
from gateway.api.http_protocol import HttpProtocol
from gateway.config_command import main as config_command
from gateway.database.errors import DatabaseRefused
from gateway.given_settings import ignored_variables, load_settings
from gateway.jobs.owner import Owner
from gateway.pipeline_feed.feed import Feed
from gateway.settings import InvalidSettings, Settings
from gateway.shell.assembly import Gateway
from gateway.shell.ending import wind_down
from gateway.shell.garbage import spare_pauses
from gateway.shell.local import BUNDLED_MODEL, LocalStageFailed, LocalStages
from gateway.shell.metrics_port import serve_metrics
from gateway.stages.sockets import BindError
from wire.children import CannotStart
from wire.errors import USER_MISTAKE
from wire.logs import log_to_stderr
from wire.open_files import allow_files
from wire.telemetry import BadExporter, MetricsExport, configure, metrics_export
from wire.types import OPTIONAL, Role

GRACE_SECONDS = 5
"""For connections to close when the gateway ends, and with ``--local`` for requests under way."""

OTHER_FILES = 1024
"""Descriptors beside one for each stage server: clients, pictures on their way, the database."""

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 # compared with, not bound
"""Every address of this machine → one of them that can be called."""

log = logging.getLogger("gateway")


def main(arguments: Sequence[str] | None = None, program: str = "python -m gateway") -> int:
    """The exit status: 0 after a regular end, 2 for what the operator has to put right, 1 for anything else."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["keys"]:
        return keys_command(words[1:], program)
    if words[:1] == ["config"]:
        return config_command(words[1:], program)
    given = {name: value for name, value in vars(_parser(program).parse_args(words)).items() if value is not None}
    local, config = given.pop("local"), given.pop("config", None)
    further = {role: str(given.pop(name)) for role in OPTIONAL if (name := f"local_{role}") in given}
    if further and not local:
        print(f"gateway: --local-{next(iter(further))} needs --local", file=sys.stderr)  # noqa: T201 # as below
        return USER_MISTAKE
    status = 0
    if local:
        given.setdefault("control_bind", "tcp://127.0.0.1:*")
    try:
        settings, made_key = _settings(given, local=local, config=config)
        log_to_stderr("gateway", settings.log_level, settings.log_format)
        for line in ignored_variables():
            log.warning("%s", line)
        configure("gateway")
        export = metrics_export("gateway") if settings.metrics else None
        with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
            runner.run(_serve(settings, made_key, export, local=local, further=further))
    except* (InvalidSettings, BadExporter, BindError, DatabaseRefused, LocalStageFailed, CannotStart) as group:
        _complain(group)
        status = USER_MISTAKE
    return status


def _settings(given: dict[str, object], *, local: bool, config: str | None = None) -> tuple[Settings, str]:
    """And, with ``local``, an admin key that was made because none was given: the page's view of the pipeline asks for
    one. Empty otherwise."""
    settings = load_settings(config, **given)
    if local and "shutdown_seconds" not in settings.model_fields_set:
        given["shutdown_seconds"] = GRACE_SECONDS  # whoever presses Ctrl-C waits for it
        settings = load_settings(config, **given)
    if not (local and settings.page and settings.admin_key is None):
        return settings, ""
    made_key = secrets.token_urlsafe(18)
    return load_settings(config, **given, admin_key=SecretStr(made_key)), made_key


async def _serve(
    settings: Settings, made_key: str, export: MetricsExport | None, *, local: bool, further: Mapping[Role, str]
) -> None:
    allow_files(settings.max_stage_servers + OTHER_FILES, "DISAGFUSION_MAX_STAGE_SERVERS")
    listener = _listen(settings, settings.port, "--port")
    gateway = Gateway(settings)
    stages = LocalStages(gateway.pool.endpoint, further=further) if local else None
    async with asyncio.TaskGroup() as tasks:
        # Before all else: importing torch takes them longer than everything that we still have to do.
        serving = [] if stages is None else [tasks.create_task(stages.run(), name="local stages")]
        await gateway.open()
        owner = Owner(settings.state_folder())
        app = _app(gateway, settings, owner)
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
            ),
            gateway.feed,
            lambda: wind_down(gateway.door, app.state.api.desk, gateway.cells, settings.shutdown_seconds),
        )
        spare_pauses()
        with owner:
            running = [
                tasks.create_task(gateway.run(), name="gateway"),
                tasks.create_task(_announce(gateway, listener, made_key), name="announcement"),
                *serving,
                *_metrics_at_a_port(tasks, gateway, settings),
                *_metrics_exported(tasks, gateway, export),
                tasks.create_task(app.state.api.desk.run(), name="jobs"),
            ]
            await server.serve(sockets=[listener])
            for task in reversed(running):  # jobs are given back, and stage servers say goodbye, while we still listen
                task.cancel()
                await asyncio.wait([task])


def _app(gateway: Gateway, settings: Settings, owner: Owner) -> FastAPI:
    return create_app(
        gateway.dispatcher,
        settings,
        operator=gateway.operator,
        feed=gateway.feed,
        storage=gateway.storage,
        room=gateway.room,
        keys=gateway.keys,
        limiter=gateway.limiter,
        meter=gateway.meter,
        once=gateway.once,
        database=gateway.database,
        owner=owner,
        instruments=gateway.instruments,
        door=gateway.door,
    )


def _metrics_at_a_port(tasks: asyncio.TaskGroup, gateway: Gateway, settings: Settings) -> Iterator[asyncio.Task[None]]:
    """If the settings name one. Raises ``BindError``."""
    if gateway.instruments is not None and settings.metrics_port is not None:
        listener = _listen(settings, settings.metrics_port, "DISAGFUSION_METRICS_PORT")
        log.info("metrics at %s/metrics", _url(*listener.getsockname()[:2]))
        serving = serve_metrics(listener, gateway.instruments.registry, settings.metrics_key)
        yield tasks.create_task(serving, name="metrics")


def _metrics_exported(
    tasks: asyncio.TaskGroup, gateway: Gateway, export: MetricsExport | None
) -> Iterator[asyncio.Task[None]]:
    if gateway.instruments is not None and export is not None:
        from gateway.metrics.otlp import export_metrics  # with OpenTelemetry's SDK, which others do without

        yield tasks.create_task(export_metrics(gateway.instruments.registry, export), name="metrics over OTLP")


async def _announce(gateway: Gateway, listener: socket.socket, made_key: str) -> None:
    host, port = listener.getsockname()[:2]
    log.info("listening at %s; stage servers connect to %s", _url(host, port), gateway.pool.endpoint)
    await gateway.dispatcher.until_ready()
    try:
        # for the person at the terminal
        url = _url(_WILDCARDS.get(host, host), port)
        print(example(url, keys=gateway.keys.required), flush=True)  # noqa: T201
        if made_key:
            print(page_line(url, made_key), flush=True)  # noqa: T201
    except BrokenPipeError:  # whoever read our output has gone, which is no reason to stop serving
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def example(url: str, *, keys: bool) -> str:
    """A first request to copy. A key is the reader's to fill in: what is printed ends up in logs."""
    body = '{"prompt": "a large red circle in the center on a white background", "response_format": "url"}'
    headers = "-H 'content-type: application/json'"
    if keys:
        headers += ' -H "authorization: Bearer $OPENAI_API_KEY"'
    return f"Ready at {url}. For example:\n  curl {url}/v1/images/generations {headers} -d '{body}'"


def page_line(url: str, made_key: str) -> str:
    """Where to look. The key is of no use beyond this process."""
    return f"Its page: {url}/ with the pipeline behind this run's admin key: {made_key}"


class _Server(uvicorn.Server):
    """Leaves no signal to be raised again at the end: Ctrl-C is a regular end here. The first signal begins to
    ``wind_down``, the next ends that. Ends the streams of ``feed``, which would go on for as long as the grace."""

    def __init__(
        self, config: uvicorn.Config, feed: Feed | None, wind_down: Callable[[], Coroutine[None, None, float]]
    ) -> None:
        super().__init__(config)
        self._feed = feed
        self._wind_down = wind_down
        self._winding_down: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._winding_down is None:
            self._winding_down = asyncio.create_task(self._end(), name="winding down")
        else:
            super().handle_exit(sig, frame)

    async def _end(self) -> None:
        left = await self._wind_down()
        self.config.timeout_graceful_shutdown = max(1, min(GRACE_SECONDS, round(left)))
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._feed is not None:
            self._feed.close()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def _listen(settings: Settings, port: int, option: str) -> socket.socket:
    """``option``: where another port can be named."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host.strip("[]"), port), family=family, backlog=2048)
    except OSError as error:
        where = f"{settings.host}:{port}"
        why = str(error.strerror).partition(" (")[0]
        raise BindError(f"cannot listen at {where}: {why}; choose another --host or {option}") from error


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _complain(group: BaseExceptionGroup[BaseException]) -> None:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            _complain(error)
        else:
            print(f"gateway: {error}", file=sys.stderr)  # noqa: T201 # this is its way to speak to the operator


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Serves OpenAI's image API and drives the stage servers that connect to it.",
        epilog="'python -m gateway keys' makes, lists and revokes API keys, 'python -m gateway config' shows every "
        "setting: see their --help. Settings may also be given as DISAGFUSION_<SETTING>; the command line wins.",
    )
    parser.add_argument("--local", action="store_true", help=f"also start stage servers here, with {BUNDLED_MODEL}")
    for role in OPTIONAL:
        which = f"and one with this {role}, a folder or hub id; needs --local"
        parser.add_argument(f"--local-{role}", metavar="SOURCE", help=which)
    parser.add_argument("--config", metavar="FILE", help="TOML with settings, behind variables (DISAGFUSION_CONFIG)")
    parser.add_argument("--host", help="address of the HTTP API (default: 127.0.0.1)")
    parser.add_argument("--port", help="its port, 0 for any (default: 8000)")
    parser.add_argument("--control-bind", metavar="tcp://HOST:PORT", help="where stage servers connect to")
    parser.add_argument("--data-bind", metavar="tcp://HOST:PORT", help="where they fetch uploaded pictures")
    parser.add_argument("--data-advertise", metavar="tcp://HOST:PORT", help="how they reach that, if not as it is")
    parser.add_argument("--allow-plaintext", action="store_true", default=None, help="bind beyond loopback unencrypted")
    parser.add_argument("--allow-anonymous", action="store_true", default=None, help="serve callers without API keys")
    parser.add_argument("--log-level", help="debug, info, warning or error (default: info)")
    parser.add_argument("--log-format", help="text, or json: an object on each line (default: text)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""``python -m fleet up|status|scale|down|render|schema``: what runs where, from one description. See docs/fleet.md."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fleet.description import Fleet
from fleet.keys import look_up
from fleet.kubernetes import helm_values
from fleet.launcher import LaunchFailed
from fleet.local.desk import NotUp, UpAlready, ask
from fleet.local.run import run_here
from fleet.options import state_folder
from fleet.programs import check_ports
from fleet.reading import read_fleet
from fleet.shown import table
from fleet.table import InvalidFleet
from wire.children import CannotStart
from wire.errors import USER_MISTAKE
from wire.logs import log_to_stderr

INTERRUPTED = 130
HERE = "local"


def main(arguments: Sequence[str] | None = None, program: str = "python -m fleet") -> int:
    """The exit status: 0 after a regular end, 2 for what the operator has to put right, 130 when work was cut off."""
    given = _parser(program).parse_args(arguments)
    try:
        given.run(given)
    except (InvalidFleet, LaunchFailed, NotUp, UpAlready, CannotStart) as error:
        sys.stderr.write(f"fleet: {error}\n")
        return USER_MISTAKE
    except (asyncio.CancelledError, KeyboardInterrupt):
        return INTERRUPTED
    return 0


def _up(given: argparse.Namespace) -> None:
    fleet = read_fleet(given.fleet)
    check_ports(fleet)
    secrets = look_up(fleet.keys, os.environ, given.fleet.parent)
    log_to_stderr("fleet", "info", "text")
    if given.on == HERE:
        run_here(fleet, secrets, _folder(fleet))
    else:
        _ray().up(fleet, secrets, given.on)


def _status(given: argparse.Namespace) -> None:
    fleet = read_fleet(given.fleet)
    told = _ask(given, fleet, "status")
    sys.stdout.write(json.dumps(told, indent=2) + "\n" if given.json else table(fleet, told))


def _scale(given: argparse.Namespace) -> None:
    fleet = read_fleet(given.fleet)
    for pool, servers in given.pools:
        _ask(given, fleet, "scale", pool=pool, servers=servers)


def _down(given: argparse.Namespace) -> None:
    _ask(given, read_fleet(given.fleet), "down")


def _render(given: argparse.Namespace) -> None:
    sys.stdout.write(json.dumps(helm_values(read_fleet(given.fleet)), indent=2) + "\n")


def _schema(_: argparse.Namespace) -> None:
    sys.stdout.write(json.dumps(Fleet.model_json_schema(), indent=2) + "\n")


def _ask(given: argparse.Namespace, fleet: Fleet, order: str, **arguments: Any) -> Any:
    if given.on != HERE:
        return _ray().ask(fleet, given.on, order, **arguments)
    return asyncio.run(ask(_folder(fleet), order, **arguments))


def _folder(fleet: Fleet) -> Path:
    return state_folder() / "fleets" / fleet.name


def _ray() -> Any:
    """Its own module: importing Ray takes a second, and it may not be there."""
    if find_spec("ray") is None:
        raise LaunchFailed('--on ray needs ray, which is not installed: pip install "disagfusion[ray]"')
    return import_module("fleet.on_ray.orders")


def _place(given: str) -> str:
    if given not in (HERE, "ray") and not given.startswith("ray://"):
        raise argparse.ArgumentTypeError(f"{given!r}: write local, ray, or ray://HOST:PORT")
    return given


def _pool_and_number(given: str) -> tuple[str, int]:
    pool, _, number = given.partition("=")
    if not pool or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{given!r}: write POOL=NUMBER")
    return pool, int(number)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Runs gateways and stage servers as a file describes them, on this machine or on a Ray cluster.",
        epilog="docs/fleet.md explains the file and has examples.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    described = [
        command("up", _up, "start it; on this machine stay until Ctrl-C or 'down', which drain it"),
        (status := command("status", _status, "what runs, where, and how often it was started again")),
        (scale := command("scale", _scale, "another number of servers for a pool; those that are too many drain")),
        command("down", _down, "drain it and end it"),
    ]
    for each in described:
        each.add_argument("fleet", type=Path, metavar="fleet.toml")
        each.add_argument("--on", type=_place, default=HERE, help="local (default), ray, or ray://HOST:PORT")
    status.add_argument("--json", action="store_true", help="for programs")
    scale.add_argument("pools", nargs="+", type=_pool_and_number, metavar="POOL=NUMBER")
    render = command("render", _render, "print it for another system")
    render.add_argument("--kubernetes", action="store_true", required=True, help="values of the chart in deploy/helm")
    render.add_argument("fleet", type=Path, metavar="fleet.toml")
    command("schema", _schema, "print the JSON schema of fleet.toml, for editors")
    return parser

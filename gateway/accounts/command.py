"""``python -m gateway keys``: makes, lists and revokes API keys in the database, whether or not a gateway runs."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

from gateway.accounts import secrets
from gateway.accounts.caller import EVERYTHING, Caller, Limits, Scope
from gateway.accounts.table import as_json, as_table, moment
from gateway.database.database import Database
from gateway.database.errors import DatabaseError, DatabaseRefused
from gateway.database.keys import MAX_NAME, StoredKeys
from gateway.given_settings import load_settings
from gateway.service.interfaces import BACKGROUND
from gateway.settings import InvalidSettings, Settings
from wire.errors import USER_MISTAKE

SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
LAST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
"""Later times cannot be shown as dates."""


def main(arguments: Sequence[str], program: str = "python -m gateway") -> int:
    """The exit status: 0, or 2 for what the operator has to put right."""
    given = _parser(program).parse_args(arguments)
    logging.getLogger("gateway").addHandler(logging.NullHandler())  # what the database says there is said below
    try:
        return asyncio.run(_with_keys(load_settings(given.config), lambda keys: given.run(keys, given)))
    except (InvalidSettings, DatabaseError, DatabaseRefused) as error:
        return _complain(str(error))


async def _with_keys(settings: Settings, work: Callable[[StoredKeys], Awaitable[int]]) -> int:
    database = Database(settings)
    try:
        await database.open()
        return await work(StoredKeys(database))
    finally:
        await database.close()


async def _create(keys: StoredKeys, given: argparse.Namespace) -> int:
    limits = Limits(
        given.requests_per_minute, given.images_per_minute, given.concurrent_requests, given.device_seconds_per_month
    )
    caller = Caller(given.tenant, "", given.scopes, given.models, limits)
    secret = secrets.new_secret()
    key = await keys.create(caller, given.name or "", secrets.digest_of(secret.encode()), time.time(), given.expires)
    _say(
        f"{key} for tenant {given.tenant!r}, scopes {', '.join(sorted(given.scopes))}, expires {moment(given.expires)}."
    )
    _say("This is the only time that the key itself is shown; gateways take it within a second:")
    print(secret)  # noqa: T201 # alone on standard output, so that a script may take it from there
    return 0


async def _list(keys: StoredKeys, given: argparse.Namespace) -> int:
    found = await keys.all(given.tenant)
    print(json.dumps(list(map(as_json, found)), indent=2) if given.json else as_table(found, time.time()))  # noqa: T201
    return 0


async def _revoke(keys: StoredKeys, given: argparse.Namespace) -> int:
    status = 0
    for key in given.id:
        before = await keys.revoke(key, time.time())
        if before is None:
            status = _complain(f"there is no key {key!r}; 'keys list' shows the ids")
        elif before.revoked is not None:
            _say(f"{key} was revoked at {moment(before.revoked)} already.")
        else:
            _say(f"{key} of tenant {before.caller.tenant!r} is revoked; gateways refuse it within a second.")
    return status


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201 # for the person at the terminal


def _complain(line: str) -> int:
    _say(f"gateway keys: {line}")
    return USER_MISTAKE


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{program} keys",
        description="API keys in the database that DISAGFUSION_STATE_DIR or DISAGFUSION_DATABASE_URL names. "
        "Run it as the gateway's user and with its settings; the gateway may run or not.",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with the gateway's settings (DISAGFUSION_CONFIG)")
    commands = parser.add_subparsers(required=True, metavar="create | list | revoke")
    _add_create(commands.add_parser("create", help="make a key and show it, once", description=_create_text()))
    listing = commands.add_parser("list", help="show all keys, without their secrets")
    listing.add_argument("--tenant", help="of this tenant only")
    listing.add_argument("--json", action="store_true", help="for programs; times are Unix times")
    listing.set_defaults(run=_list)
    revoking = commands.add_parser("revoke", help="refuse keys from now on, for ever")
    revoking.add_argument("id", nargs="+", help="as 'keys list' shows it: key_…")
    revoking.set_defaults(run=_revoke)
    return parser


def _create_text() -> str:
    return "Makes a key. Standard output is the key alone, everything else goes to standard error."


def _add_create(parser: argparse.ArgumentParser) -> None:
    scopes = ",".join(Scope)
    parser.add_argument("--tenant", required=True, type=_tenant, help="whose files, jobs and usage it opens")
    parser.add_argument("--name", type=_name, help="what it is for, in your words")
    parser.add_argument("--scopes", default=EVERYTHING, type=_scopes, help=f"some of {scopes} (default: all)")
    parser.add_argument("--models", default=frozenset(), type=_models, help="names, with commas between (default: all)")
    parser.add_argument("--expires", type=_expiry, metavar="WHEN", help="30d, 12h, or 2027-01-31 (UTC; default: never)")
    parser.add_argument("--requests-per-minute", type=_count, metavar="N")
    parser.add_argument("--images-per-minute", type=_count, metavar="N")
    parser.add_argument("--concurrent-requests", type=_count, metavar="N")
    parser.add_argument("--device-seconds-per-month", type=_seconds, metavar="SECONDS", help="a calendar month, UTC")
    parser.set_defaults(run=_create)


def _name(given: str) -> str:
    name = given.strip()
    if not name or not name.isprintable() or len(name) > MAX_NAME:
        raise argparse.ArgumentTypeError(f"write 1 to {MAX_NAME} printable characters, not {given!r}")
    return name


def _tenant(given: str) -> str:
    name = _name(given)
    if name == BACKGROUND:
        raise argparse.ArgumentTypeError(f"batches run as {name!r}: take another name")
    return name


def _words(given: str) -> frozenset[str]:
    return frozenset(word.strip() for word in given.split(",") if word.strip())


def _scopes(given: str) -> frozenset[Scope]:
    words = _words(given)
    unknown = sorted(words.difference(Scope))
    if unknown or not words:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'}: write some of {','.join(Scope)}")
    return frozenset(map(Scope, words))


def _models(given: str) -> frozenset[str]:
    if not _words(given):
        raise argparse.ArgumentTypeError("write names of models with commas between, or leave it out for all")
    return _words(given)


def _expiry(given: str) -> float:
    now = time.time()
    span = re.fullmatch(r"(\d{1,6})([mhdw])", given)
    if span:
        then = now + int(span[1]) * SECONDS[span[2]]
    else:
        try:
            when = datetime.fromisoformat(given)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{given!r}: write 30d, 12h or 2027-01-31") from None
        then = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    if then <= now:
        raise argparse.ArgumentTypeError(f"{given} is past")
    if then >= LAST:
        raise argparse.ArgumentTypeError(f"{given} is after the year 9998: leave it out for a key that never expires")
    return then


def _count(given: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", given):
        raise argparse.ArgumentTypeError(f"{given!r}: write a whole number from 1 to 999999999")
    return int(given)


def _seconds(given: str) -> float:
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e12:
        raise argparse.ArgumentTypeError(f"{given!r}: write a number above 0")
    return seconds

"""``python -m gateway config``: every setting, its value and where it comes from."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence

from pydantic import SecretStr

from gateway.given_settings import ignored_variables, load_settings, origins
from gateway.settings import InvalidSettings, Settings
from wire.errors import USER_MISTAKE

MASK = "********"
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def main(arguments: Sequence[str], program: str = "python -m gateway") -> int:
    """The exit status: 0, or 2 where the gateway would not start with these settings."""
    given = _parser(program).parse_args(arguments)
    try:
        settings, where = load_settings(given.config), origins(given.config)
    except InvalidSettings as error:
        sys.stderr.write(f"gateway config: {error}\n")
        return USER_MISTAKE
    for line in ignored_variables():
        sys.stderr.write(f"gateway config: {line}\n")
    rows = [
        (name, shown(getattr(settings, name)), where[name])
        for name in Settings.model_fields
        if where[name] != "default" or not given.changed
    ]
    if given.json:
        text = json.dumps({name: {"value": value, "from": origin} for name, value, origin in rows}, indent=2)
    else:
        text = _table([(name, json.dumps(value, ensure_ascii=False), origin) for name, value, origin in rows])
    sys.stdout.write(f"{text}\n")
    return 0


def shown(value: object) -> object:
    """``value`` as JSON has it, with nothing secret in it."""
    match value:
        case SecretStr():
            return MASK if value.get_secret_value() else ""
        case dict():
            return {name: shown(each) for name, each in value.items()}
        case frozenset():
            return sorted(value)
        case tuple():
            return [shown(each) for each in value]
        case None | bool() | int() | float():
            return value
    return _USER_IN_URL.sub(MASK, str(value))


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    names, values = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
    # One long list must not push every origin off the screen.
    values = min(values, 40)
    return "\n".join(f"{name:{names}}  {value:{values}}  {origin}" for name, value, origin in rows)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{program} config",
        description="Shows every setting of the gateway, its value and where it comes from: a variable, the file, or "
        "the default. Secrets are masked.",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings (DISAGFUSION_CONFIG)")
    parser.add_argument("--changed", action="store_true", help="only those that are not defaults")
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser

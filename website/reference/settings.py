"""The settings of gateway and stage server, from their settings classes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gateway.settings import Settings as GatewaySettings
from stage_server.settings import Settings as StageSettings
from website.reference.attributes import attributes, one_line

GATEWAY_HEAD = """# Settings of the gateway

Each is a variable of the environment, with `DISAGFUSION_` before its name (`DISAGFUSION_PORT=9000`), or a line of a
[settings file](../operating.md#settings), in small letters and without it (`port = 9000`). Variables hold lists and
mappings as JSON. `disagfusion config` shows what holds on a machine.
"""
STAGE_HEAD = """# Settings of a stage server

Each is an option of `disagfusion stage`, or a variable of the environment, `DISAGFUSION_STAGE_DATA_BIND` for
`--data-bind`. The option wins. Variables separate by commas what an option may give more than once.
"""


def gateway_page() -> str:
    return "\n".join((GATEWAY_HEAD, *_gateway_tables()))


def stage_server_page() -> str:
    rows = [("option", "default", "")]
    for name, field in StageSettings.model_fields.items():
        rows.append((f"`--{name.replace('_', '-')}`", _default(field), one_line(field.description or "")))
    return "\n".join((STAGE_HEAD, *table(rows), ""))


def table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Markdown of ``rows``, the first of which is the head."""
    head, *others = rows
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in others:
        yield f"| {' | '.join(row)} |"


def _gateway_tables() -> Iterator[str]:
    schemas = GatewaySettings.model_json_schema()["properties"]
    for group, members in groupby(attributes(GatewaySettings), key=lambda each: each.group):
        yield f"## {group.partition('; docs/')[0]}\n"
        rows = [("setting", "default", "values", "")]
        for each in members:
            default = _default(GatewaySettings.model_fields[each.name])
            rows.append((f"`{each.name.upper()}`", default, _values(schemas[each.name]), one_line(each.text)))
        yield from table(rows)
        yield ""


def _values(schema: Mapping[str, Any]) -> str:
    """What a setting may be."""
    kinds = [_kind(each) for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    return one_line(" or ".join(kinds))


def _kind(schema: Mapping[str, Any]) -> str:
    if choices := schema.get("enum"):
        return ", ".join(f"`{choice}`" for choice in choices)
    kind = {"boolean": "`true`, `false`", "array": "list", "object": "mapping"}.get(
        str(schema["type"]), str(schema["type"])
    )
    bounds = [
        f"{word} {schema[bound]:,}" if isinstance(schema[bound], int) else f"{word} {schema[bound]:g}"
        for bound, word in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("minLength", "length from"),
        )
        if bound in schema
    ]
    return f"{kind}, {' '.join(bounds)}" if bounds else kind


def _default(field: FieldInfo) -> str:
    match field.default:
        case value if value is PydanticUndefined:
            return "must be given"
        case None | "" | () | SecretStr():
            return ""
        case frozenset() as several:
            return f"`{json.dumps(sorted(several))}`"
        case tuple() as several:
            return f"`{json.dumps(several)}`"
        case dict() as mapping:
            return f"`{json.dumps(mapping)}`" if mapping else ""
        case bool() as value:
            return f"`{str(value).lower()}`"
        case int() as number if number >= 1 << 20 and number % (1 << 20) == 0:
            return _binary(number)
        case Path() | str() | int() | float() as value:
            return f"`{re.sub(r'[.]0$', '', str(value))}`"
        case other:
            raise AssertionError(f"how is {other!r} written?")


def _binary(number: int) -> str:
    return f"{number >> 30} GiB" if number % (1 << 30) == 0 else f"{number >> 20} MiB"

"""The HTTP API, from the OpenAPI document that the gateway itself serves at ``/openapi.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, cast

from gateway.api.app import create_app
from gateway.settings import Settings
from website.reference.attributes import one_line
from website.reference.settings import table

HEAD = """# HTTP API

Every path that a gateway serves, and what it takes; `/openapi.json` has the same as JSON. Answers, streams, errors and
examples are in [the images API](../api.md). Paths below `/admin` exist only with an [admin key](../operating.md#admin).
"""
Schema = Mapping[str, Any]


def document() -> dict[str, Any]:
    """OpenAPI of a gateway with everything on."""
    nobody = cast("Any", object())  # no request is served
    settings = Settings.model_validate({"admin_key": "nobody-has-this-key"})
    return create_app(nobody, settings, operator=nobody, feed=nobody, meter=nobody).openapi()


def page() -> str:
    return "\n".join((HEAD, *_sections(document())))


def _sections(api: Schema) -> Iterator[str]:
    operations = [
        (operation["tags"][0], method, path, operation)
        for path, methods in api["paths"].items()
        for method, operation in methods.items()
    ]
    for tag, members in groupby(sorted(operations, key=lambda each: each[0]), key=lambda each: each[0]):
        yield f"## {tag.capitalize()}\n"
        for _, method, path, operation in members:
            yield f"### {method.upper()} {path}\n"
            yield from _operation(operation, api.get("components", {}).get("schemas", {}))


def _operation(operation: Schema, named: Schema) -> Iterator[str]:
    if operation.get("description"):
        yield operation["description"].replace("``", "`") + "\n"
    if parameters := operation.get("parameters"):
        rows = [("parameter", "in", "type", "")]
        for each in parameters:
            words = one_line(each.get("description", ""))
            rows.append((f"`{each['name']}`", each["in"], kind(each["schema"], named), words))
        yield from table(rows)
        yield ""
    bodies = operation.get("requestBody", {}).get("content", {})
    for media_type, body in bodies.items():
        schema = _resolved(body["schema"], named)
        yield f"Body, `{media_type}`:\n"
        yield from table([("field", "type", ""), *_fields(schema, {**named, **schema.get("$defs", {})})])
        yield ""


def _fields(schema: Schema, named: Schema) -> Iterator[tuple[str, str, str]]:
    required = schema.get("required", ())
    for name, given in schema.get("properties", {}).items():
        shown = f"`{name}`" + (" (required)" if name in required else "")
        yield shown, kind(given, named), one_line(_description(given, named))


def kind(given: Schema, named: Schema) -> str:
    """The type of a value in a few words, with its bounds."""
    schema = _resolved(given, named)
    for several in ("anyOf", "oneOf"):
        if several in schema:
            kinds = [kind(each, named) for each in schema[several] if each.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"] if each is not None)
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}), named)}"
    name = schema.get("type", "any")
    if isinstance(name, list):
        name = " or ".join(each for each in name if each != "null")
    if schema.get("format") == "binary":
        name = "file"
    return f"{name}{_bounds(schema)}"


def _bounds(schema: Schema) -> str:
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    said = [f"{word} {schema[bound]}" for bound, word in words.items() if bound in schema]
    if "maxLength" in schema:
        said.append(f"at most {schema['maxLength']:,} characters")
    return f", {' '.join(said)}" if said else ""


def _description(given: Schema, named: Schema) -> str:
    schema = _resolved(given, named)
    if "description" in schema:
        return str(schema["description"])
    return next((str(each["description"]) for each in schema.get("anyOf", ()) if "description" in each), "")


def _resolved(schema: Schema, named: Schema) -> Schema:
    reference = schema.get("$ref")
    return schema if reference is None else cast("Schema", named[reference.rpartition("/")[2]])

"""Every message of the wire protocol with its fields, from the structs that encode it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import get_args

import msgspec

from website.reference.attributes import attributes, one_line
from website.reference.settings import table
from wire import bounded, params, to_gateway, to_stage, transfer, types
from wire.version import PROTOCOL

HEAD = f"""# Messages of the wire protocol

Protocol {PROTOCOL[0]}.{PROTOCOL[1]}. What messages are for, and their order: [the wire protocol](../wire.md). Each is a
MessagePack map whose `type` is its name. Fields with a default may be left out; unknown ones are skipped.
"""


def page() -> str:
    return "\n".join((HEAD, *_sections()))


def _sections() -> Iterator[str]:
    yield from _union("From a stage server to the gateway", get_args(to_gateway.ToGateway))
    yield from _union("From the gateway to a stage server", get_args(to_stage.ToStage))
    yield from _union("From who reads an output to who holds it", get_args(transfer.Request))
    yield from _union("Back to who reads it", get_args(transfer.Answer))
    yield from _union("What messages hold", _parts())


def _union(title: str, members: tuple[type, ...]) -> Iterator[str]:
    yield f"## {title}\n"
    for cls in members:
        yield f"### {cls.__name__}\n"
        if "__doc__" in vars(cls) and cls.__doc__:
            yield f"{' '.join(cls.__doc__.split()).replace('``', '`')}\n"
        fields = [field for owner in _lineage(cls) for field in attributes(owner)]
        if fields:
            rows = [(f"`{each.name}`", _code(each.type), _code(each.default), one_line(each.text)) for each in fields]
            yield from table([("field", "type", "default", ""), *rows])
            yield ""


def _lineage(cls: type) -> list[type]:
    """``cls`` and the structs that it extends, in the order in which their fields are encoded."""
    return [each for each in reversed(cls.__mro__) if issubclass(each, msgspec.Struct) and each is not msgspec.Struct]


def _parts() -> tuple[type, ...]:
    """Structs that are fields of messages, not messages."""
    messages = {*get_args(to_gateway.ToGateway), *get_args(to_stage.ToStage), *get_args(transfer.Request)}
    messages |= set(get_args(transfer.Answer))
    found: dict[str, type] = {}
    for module in (types, params, bounded, to_gateway, to_stage):
        for name, value in vars(module).items():
            is_part = isinstance(value, type) and issubclass(value, msgspec.Struct) and value not in messages
            if is_part and value.__module__ == module.__name__ and name != "Message":
                found[name] = value
    return tuple(found.values())


def _code(text: str) -> str:
    text = re.sub(r"\s+", " ", text).replace("|", "\\|")
    return f"`{text}`" if text else ""

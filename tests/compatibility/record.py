"""Writes down how the checkout on PYTHONPATH encodes every control message:

PYTHONPATH=CHECKOUT python tests/compatibility/record.py > tests/compatibility/wire-VERSION.json

Each message comes twice: with what it must have alone, and with all its fields.
"""

from __future__ import annotations

import base64
import json
import types
import typing
from enum import Enum
from typing import Annotated, Any, get_args, get_origin

import msgspec

from wire import to_gateway, to_stage


def sample(kind: Any) -> Any:
    """A value of a type, all of whose own fields are filled."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated or origin in (typing.Union, types.UnionType):
        return sample(next(each for each in arguments if each is not type(None)))
    if origin is tuple:
        return tuple(sample(each) for each in arguments if each is not Ellipsis)
    if origin is dict:
        return {sample(arguments[0]): sample(arguments[1])}
    if supertype := getattr(kind, "__supertype__", None):
        return sample(supertype)
    if issubclass(kind, msgspec.Struct):
        return filled(kind)
    if issubclass(kind, Enum):
        return next(iter(kind))
    if issubclass(kind, tuple):
        return kind(*(sample(each) for each in typing.get_type_hints(kind).values()))
    return {str: "abc0", int: 3, float: 1.0, bool: True, bytes: b"bytes"}[kind]


def filled(kind: type[msgspec.Struct], *, whole: bool = True) -> msgspec.Struct:
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [each.name for each in msgspec.structs.fields(kind) if whole or each.required]
    return kind(**{name: sample(hints[name]) for name in names})


def recorded(union: Any) -> dict[str, list[str]]:
    """Name of a message → its encodings."""
    encode = msgspec.msgpack.encode
    return {
        kind.__name__: [base64.b64encode(encode(filled(kind, whole=whole))).decode() for whole in (False, True)]
        for kind in get_args(union)
    }


def main() -> None:
    both = {"to_gateway": recorded(to_gateway.ToGateway), "to_stage": recorded(to_stage.ToStage)}
    print(json.dumps(both, indent=1))


if __name__ == "__main__":
    main()

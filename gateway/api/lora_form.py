"""LoRA adapters in a form, whose parts are all text: names, JSON texts, or names and scales apart."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from pydantic import Field, TypeAdapter, ValidationError

from gateway.api.errors import ApiError
from gateway.api.loras import NAMES, Lora, listed
from gateway.api.parsing import from_pydantic
from wire.params import MAX_ADAPTERS

PART = re.compile(rf"(?P<root>{'|'.join(NAMES)})(?P<entry>\[\d{{0,2}}\])?(\[(?P<key>name|scale)\])?")
"""As clients write them: ``lora``, ``lora[]``, ``lora[0]``, ``lora[][name]``, ``lora[scale]``, …"""

_entries = TypeAdapter(Annotated[list[Lora], Field(max_length=MAX_ADAPTERS)])


def from_parts(parts: Iterable[tuple[str, str]]) -> dict[str, list[Lora]]:
    """Field → its entries, from the parts of a form that ``PART`` matches. Raises ``ApiError``.

    A part is a name, a JSON text, or one half of an entry; halves of entries without a number go together in order.
    """
    entries: dict[str, list[Any]] = defaultdict(list)
    halves: dict[tuple[str, str], dict[str, list[str]]] = {}
    for name, value in parts:
        part = PART.fullmatch(name)
        if part is None:
            raise ValueError(f"{name} is no part of a LoRA")
        if part["key"] is None:
            entries[part["root"]] += _texts(part["root"], value)
        else:
            group = halves.setdefault((part["root"], part["entry"] or ""), {"name": [], "scale": []})
            group[part["key"]].append(value)
    for (root, _), group in halves.items():
        entries[root] += _joined(root, group["name"], group["scale"])
    return {root: _validated(root, found) for root, found in entries.items() if found}


def _texts(field: str, value: str) -> list[Any]:
    if not value.startswith(("[", "{")):
        return [{"name": value}]
    try:
        decoded = msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ApiError(
            f"Invalid '{field}': expected a name or a JSON text ({error}).", code="invalid_type", param=field
        ) from None
    found: list[Any] = listed(decoded) or []
    return found


def _joined(field: str, names: list[str], scales: list[str]) -> list[Any]:
    if not scales:
        return [{"name": name} for name in names]
    if len(names) != len(scales):
        raise ApiError(
            f"Invalid '{field}': {len(scales)} scales for {len(names)} names; send one for each, or a JSON text.",
            code="invalid_value",
            param=field,
        )
    return [{"name": name, "scale": scale} for name, scale in zip(names, scales, strict=True)]


def _validated(field: str, entries: list[Any]) -> list[Lora]:
    try:
        return _entries.validate_python(entries, strict=False)
    except ValidationError as error:
        problems = [{**problem, "loc": (field, *problem["loc"])} for problem in error.errors(include_url=False)]
        raise from_pydantic(problems) from None

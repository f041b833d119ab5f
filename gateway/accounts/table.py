"""Keys as ``keys list`` prints them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from gateway.accounts.caller import EVERYTHING, Limits
from gateway.database.keys import KeyRecord

HEADS = ("ID", "TENANT", "NAME", "SCOPES", "MODELS", "LIMITS", "CREATED", "EXPIRES", "LAST USED", "STATE")

_SHORT = {
    "requests_per_minute": "requests/min",
    "images_per_minute": "images/min",
    "concurrent_requests": "at a time",
    "device_seconds_per_month": "s/month",
}


def as_json(record: KeyRecord) -> dict[str, object]:
    caller = record.caller
    return {
        "id": caller.key,
        "tenant": caller.tenant,
        "name": record.name,
        "scopes": sorted(caller.scopes),
        "models": sorted(caller.models),
        "limits": asdict(caller.limits),
        "created": record.created,
        "expires": record.expires,
        "last_used": record.last_used,
        "revoked": record.revoked,
    }


def as_table(records: Sequence[KeyRecord], now: float) -> str:
    if not records:
        return "No keys. 'python -m gateway keys create --tenant NAME' makes one."
    rows = [HEADS, *(_row(record, now) for record in records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(record: KeyRecord, now: float) -> tuple[str, ...]:
    caller = record.caller
    return (
        caller.key,
        caller.tenant,
        record.name or "-",
        "all" if caller.scopes == EVERYTHING else _joined(sorted(caller.scopes)),
        _joined(sorted(caller.models)) if caller.models else "all",
        _limits(caller.limits),
        moment(record.created),
        moment(record.expires),
        moment(record.last_used),
        _state(record, now),
    )


def _state(record: KeyRecord, now: float) -> str:
    if record.revoked is not None:
        return f"revoked {moment(record.revoked)}"
    return "expired" if record.expires is not None and record.expires <= now else "valid"


def _limits(limits: Limits) -> str:
    return _joined(f"{value:g} {_SHORT[name]}" for name, value in asdict(limits).items() if value is not None)


def _joined(words: Iterable[str]) -> str:
    return ",".join(words) or "-"


def moment(seconds: float | None) -> str:
    """A Unix time in UTC; "never" for None."""
    return "never" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%MZ")

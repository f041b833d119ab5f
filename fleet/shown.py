"""What ``status`` shows to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fleet.description import Fleet


def table(fleet: Fleet, told: Mapping[str, Any]) -> str:
    """``told``: see ``Supervisor.status``."""
    lines = [told["name"]]
    for gateway in told["gateways"]:
        port = fleet.gateways[gateway["name"]].port
        lines += _rows([gateway], f"the gateway, port {port}")
    for relay in told["relays"]:
        lines += _rows([relay], f"a relay, port {fleet.relays[relay['name']].port}")
    for pool in told["pools"]:
        about = [f"{pool['wanted']} wanted of {pool['min']} to {pool['max']}", pool["device_class"]]
        about += [f"{name}={value}" for name, value in pool["labels"].items()]
        lines.append(f"pool {pool['name']}: {', '.join(filter(None, about))}")
        lines += _rows(pool["servers"])
    return "\n".join(lines) + "\n"


def _rows(members: Sequence[Mapping[str, Any]], more: str = "") -> list[str]:
    return [
        f"  {member['name']:24} {member['condition']:8} {member.get('where', ''):28} "
        f"{_restarts(member.get('restarts', 0))}{more}".rstrip()
        for member in members
    ]


def _restarts(number: int) -> str:
    return f"started again {number} times " if number > 1 else "started again once " if number else ""

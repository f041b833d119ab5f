"""Keys of a fleet, looked up where its description says that they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fleet.description import Keys, Reference
from fleet.table import InvalidFleet
from wire.security import CurveKeys


@dataclass(frozen=True, slots=True)
class Secrets:
    """Variables with the keys' values. Nothing of it is printed."""

    of_gateways: Mapping[str, str]
    of_servers: Mapping[str, str]
    of_relays: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return "Secrets(…)"


def look_up(keys: Keys, environment: Mapping[str, str], folder: Path) -> Secrets:
    """``folder``: that of relative files. Raises ``InvalidFleet`` for one that is not there."""

    def value(name: str, reference: Reference) -> str:
        try:
            found = environment[reference.env] if reference.env else (folder / str(reference.file)).read_text().strip()
        except KeyError:
            raise InvalidFleet(f"keys.{name}: the variable {reference.env} is not set") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidFleet(f"keys.{name}: {folder / str(reference.file)} cannot be read: {error}") from error
        if not found:
            raise InvalidFleet(f"keys.{name}: {reference.env or reference.file} is empty")
        return found

    def pair(name: str) -> CurveKeys | None:
        if (text := single.pop(name, None)) is None:
            return None
        try:
            public, secret = text.split()
            return CurveKeys(public, secret)
        except ValueError:  # its text may hold the key
            raise InvalidFleet(
                f"keys.{name}: this is no CURVE key pair: two keys of 40 characters of Z85, the public one first, as "
                "docs/operating.md makes it"
            ) from None

    single = {name: value(name, reference) for name, reference in keys.single()}
    of_gateways, of_servers = _curve(pair("curve_gateways"), pair("curve_servers"))
    hub = {"HF_TOKEN": single.pop("hub_token")} if "hub_token" in single else {}
    relay = {"DISAGFUSION_STAGE_RELAY_KEY": single.pop("relay_key")} if "relay_key" in single else {}
    found = {f"DISAGFUSION_{name.upper()}": text for name, text in single.items()} | of_gateways
    if keys.api_keys:
        tenants = {tenant: value(f"api_keys.{tenant}", reference) for tenant, reference in keys.api_keys.items()}
        found["DISAGFUSION_API_KEYS"] = json.dumps(tenants)
    return Secrets(found, {**hub, **relay, **of_servers}, relay)


def _curve(gateways: CurveKeys | None, servers: CurveKeys | None) -> tuple[dict[str, str], dict[str, str]]:
    """Variables of either side."""
    if gateways is None or servers is None:
        return {}, {}
    return (
        {
            "DISAGFUSION_CURVE_PUBLIC_KEY": gateways.public,
            "DISAGFUSION_CURVE_SECRET_KEY": gateways.secret,
            "DISAGFUSION_CURVE_ALLOWED_KEYS": json.dumps({"*": servers.public}),
        },
        {
            "DISAGFUSION_STAGE_CURVE_PUBLIC_KEY": servers.public,
            "DISAGFUSION_STAGE_CURVE_SECRET_KEY": servers.secret,
            "DISAGFUSION_STAGE_CURVE_GATEWAY_KEY": gateways.public,
        },
    )

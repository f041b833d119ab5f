"""From a fleet's description to the command line and variables of each of its processes. Starts nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from fleet.description import Fleet, stage_options
from fleet.keys import Secrets
from fleet.options import as_flags, shutdown_seconds
from fleet.table import InvalidFleet
from wire.children import Program
from wire.security import is_loopback

LONGER_THAN_A_DRAIN = 10.0
"""Seconds after a server should have gone until it is killed: it also says goodbye and frees its device."""

LONGER_THAN_A_SHUTDOWN = 15.0
"""The same for a gateway, which says goodbye to servers and databases."""


class Kind(StrEnum):
    GATEWAY = "gateway"
    RELAY = "relay"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Member:
    """One process of a fleet: a gateway, a relay, or server ``index`` (from 1) of a pool."""

    kind: Kind
    name: str
    pool: str = ""
    index: int = 0


def server(pool: str, index: int) -> Member:
    return Member(Kind.SERVER, f"{pool}-{index}", pool, index)


def gateways(fleet: Fleet) -> Iterator[Member]:
    for name in fleet.gateways:
        yield Member(Kind.GATEWAY, name)


def relays(fleet: Fleet) -> Iterator[Member]:
    for name in fleet.relays:
        yield Member(Kind.RELAY, name)


def check_ports(fleet: Fleet) -> None:
    """For gateways and relays on one machine. Raises ``InvalidFleet``."""
    taken: dict[int, str] = {}
    kinds = ("port", "control_port", "data_port")
    ports = [
        (f"gateways.{name}.{kind}", getattr(each, kind)) for name, each in fleet.gateways.items() for kind in kinds
    ]
    for where, port in (*ports, *((f"relays.{name}.port", relay.port) for name, relay in fleet.relays.items())):
        if port in taken:
            raise InvalidFleet(f"{where}: {port} is {taken[port]} already, and they run on one machine")
        taken[port] = where


def gateway_settings(fleet: Fleet, name: str) -> dict[str, str]:
    """As variables. Not where its sockets are, and no keys."""
    served = {model for pool in fleet.pools_of(name) for model in pool.models}
    settings: dict[str, object] = dict(fleet.gateways[name].settings)
    settings["cell"] = name
    settings["default_model"] = next((each for each in served if fleet.models[each].default), None)
    settings["pools"] = dict(_elastic_pools(fleet, name))
    settings["model_aliases"] = {alias: each for each in served for alias in fleet.models[each].aliases}
    return {
        f"DISAGFUSION_{setting.upper()}": value if isinstance(value, str) else json.dumps(value)
        for setting, value in settings.items()
        if value not in (None, {})
    }


def _elastic_pools(fleet: Fleet, gateway: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    for name in fleet.predicted:
        pool = fleet.pools[name]
        if gateway in fleet.gateways_of(pool):
            limits = {"min": pool.min, "max": pool.most}
            yield name, {"model": pool.models[0], **limits, "roles": pool.roles, "device_class": pool.device_class}


def gateway_program(
    fleet: Fleet, name: str, host: str, environment: Mapping[str, str], secrets: Secrets, state: Path
) -> Program:
    """``host``: where stage servers reach it. ``state``: its own folder, unless its settings name another."""
    gateway = fleet.gateways[name]
    sockets = [
        "--control-bind",
        f"tcp://{host}:{gateway.control_port}",
        "--data-bind",
        f"tcp://{host}:{gateway.data_port}",
    ]
    plain = ["--allow-plaintext"] if fleet.allow_plaintext else []
    peers = [f"tcp://{host}:{fleet.gateways[peer].control_port}" for peer in fleet.peers_of(name)]
    where = {"DISAGFUSION_STATE_DIR": str(state), "DISAGFUSION_PEERS": json.dumps(peers)}
    own = {**where, **gateway_settings(fleet, name), **secrets.of_gateways}
    return Program(
        name,
        [sys.executable, "-m", "gateway", "--port", str(gateway.port), *sockets, *plain],
        {**without_settings(environment), **own},
        stop_seconds=shutdown_seconds(gateway.settings) + LONGER_THAN_A_SHUTDOWN,
    )


def relay_program(fleet: Fleet, name: str, host: str, environment: Mapping[str, str], secrets: Secrets) -> Program:
    """``host``: where everybody reaches it."""
    relay = fleet.relays[name]
    where = ["--bind", f"tcp://{host}:{relay.port}"]
    plain = ["--insecure"] if fleet.allow_plaintext and not secrets.of_relays else []
    bounds = ["--max-streams", str(relay.max_streams), "--drain-timeout", f"{relay.drain_seconds:g}"]
    return Program(
        name,
        [sys.executable, "-m", "stage_server", "relay", *where, *plain, *bounds],
        {**without_settings(environment), **secrets.of_relays},
        stop_seconds=relay.drain_seconds + LONGER_THAN_A_DRAIN,
    )


def server_flags(fleet: Fleet, member: Member) -> list[str]:
    """Of its command line: what it serves and how, but not where."""
    pool = fleet.pools[member.pool]
    first, *others = pool.models
    model = fleet.models[first]
    emulated = model.engine == "emulated"
    what = ["--engine", "emulated", "--profile", model.profile] if emulated else ["--model", model.source]
    if model.revision:
        what += ["--revision", model.revision]
    for other in others:
        found = fleet.models[other]
        what += ["--may-load", f"{other}={found.profile if emulated else found.source}"]
    roles = ["--role", ",".join(pool.begins(member.index)), "--may-take", ",".join(pool.roles)]
    return [*what, "--served-model-name", first, *roles, *as_flags(stage_options(fleet, pool))]


def server_program(
    fleet: Fleet, member: Member, gateway_host: str, host: str, environment: Mapping[str, str], secrets: Secrets
) -> Program:
    """``host``: where others reach this machine."""
    pool = fleet.pools[member.pool]
    ports = [fleet.gateways[gateway].control_port for gateway in fleet.gateways_of(pool)]
    gateway = ",".join(f"tcp://{gateway_host}:{port}" for port in ports)
    data = f"tcp://{host}:*"
    through = [f"tcp://{gateway_host}:{relay.port}" for relay in fleet.relays.values()]
    relay = ["--relay", ",".join(through)] if through else []
    plain = [] if fleet.is_encrypted or all(map(is_loopback, (data, *through))) else ["--insecure"]
    drain = ["--drain-timeout", f"{pool.drain_seconds:g}"]
    named = ["--name", member.name, "--pool", member.pool]
    where = [*named, "--gateway", gateway, "--data-bind", data, *relay, *plain, *drain]
    return Program(
        member.name,
        [sys.executable, "-m", "stage_server", *server_flags(fleet, member), *where],
        {**without_settings(environment), **secrets.of_servers},
        stop_seconds=pool.drain_seconds + LONGER_THAN_A_DRAIN,
    )


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """A fleet is what its description says, and not what happens to be set."""
    return {name: value for name, value in environment.items() if not name.upper().startswith("DISAGFUSION_")}

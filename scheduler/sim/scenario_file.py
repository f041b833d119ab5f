"""Scenario files, TOML; ``docs/simulator.md`` describes them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from inspect import signature
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from scheduler.cost.profile import Profile, ProfileError, load
from scheduler.scaling.pools import Pool
from scheduler.sim import suite
from scheduler.sim.bound import at_load, with_best_roles
from scheduler.sim.setup import (
    Chances,
    Fault,
    Freeze,
    Kill,
    Leave,
    Network,
    PoolSetup,
    Scenario,
    ServerSetup,
    SlowDown,
    Unreachable,
)
from scheduler.sim.workload import Kind, Phase, Workload
from wire.types import REQUIRED, Role

T = TypeVar("T")


class ScenarioError(ValueError):
    """A scenario file that cannot be used; the text is for whoever wrote it."""


class Table(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    pass


class Servers(Table, frozen=True, kw_only=True):
    profile: str
    """Of the project, or a file beside the scenario."""
    name: str = "gpu"
    count: int = 1
    roles: list[Role] = []
    """None given: the best for the first phase."""
    memory_gb: float | None = None
    store_gb: float | None = None
    host_gb: float | None = None
    """Of host memory for weights; none given: room for every role's."""
    slowness: float = 1.0
    joins_at: float = 0.0
    pinned: bool = False
    together: int = 1
    """Jobs of one role that may compute at once."""
    device: str = ""
    """Those of several tables that name the same one, and have one number, are on one machine: each another model's."""


class PoolTable(Table, frozen=True, kw_only=True):
    profile: str
    name: str = "pool"
    min: int = 0
    max: int = 1
    begin: int | None = None
    """Here from the start; none given: ``min``."""
    roles: tuple[Role, ...] = REQUIRED
    """That its servers may have, and begin with."""
    cold_start: tuple[float, float] = (60.0, 180.0)
    """A start takes something between these."""
    price: float = 1.0
    losses: list[float] = []
    """When a machine is taken away."""
    notice: float = 120.0
    memory_gb: float | None = None


class PhaseTable(Table, frozen=True, kw_only=True):
    seconds: float
    mix: dict[str, float]
    """Kind → weight."""
    rate: float = 0.0
    load: float = 0.0
    """Instead of a rate: share of the fluid bound."""
    backlog: int = 0
    cv: float = 1.0
    swing: float = 0.0
    period: float = 0.0


class FaultTable(Table, frozen=True, kw_only=True, rename={"sources": "from"}):
    kind: str
    at: float
    server: str
    factor: float = 1.0
    seconds: float = 0.0
    restart_after: float | None = None
    sources: list[str] = []
    """Who cannot fetch from it."""
    until: float = inf


class ScenarioTable(Table, frozen=True, kw_only=True):
    name: str = ""
    suite: str = ""
    """One of the project's own, instead of all that follows."""
    servers: list[Servers] = []
    pools: list[PoolTable] = []
    kinds: dict[str, dict[str, Any]] = {}
    phases: list[PhaseTable] = []
    faults: list[FaultTable] = []
    network: dict[str, float] = {}
    chances: dict[str, float] = {}
    noise: float = 0.007
    solver_seconds: float = 0.03
    exclusive: bool = False
    """One role per server, where roles are chosen."""


def read(path: Path) -> Scenario:
    """Raises ``ScenarioError``."""
    try:
        table = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), ScenarioTable)
        return _suite(table.suite) if table.suite else _scenario(table, path)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValueError) as error:
        raise ScenarioError(f"scenario {path}: {error}") from error


def _suite(name: str) -> Scenario:
    if name not in suite.SUITE:
        raise ScenarioError(f"there is no suite scenario {name!r}; there are {', '.join(suite.SUITE)}")
    return suite.SUITE[name]()


def _scenario(table: ScenarioTable, path: Path) -> Scenario:
    if not (table.servers or table.pools) or not table.phases:
        raise ScenarioError("it needs at least one [[servers]] or [[pools]], and one [[phases]]")
    servers = [server for some in table.servers for server in _servers(some, path.parent)]
    kinds = {name: _checked(Kind, {"name": name, **fields}, f"kinds.{name}") for name, fields in table.kinds.items()}
    loaded = tuple(_phase(phase, kinds, servers) for phase in table.phases)
    return Scenario(
        name=table.name or path.stem,
        servers=_with_roles(servers, loaded[0], exclusive=table.exclusive) if servers else (),
        pools=tuple(_pool(pool, path.parent) for pool in table.pools),
        workload=Workload(loaded),
        faults=tuple(map(_fault, table.faults)),
        network=_checked(Network, table.network, "network"),
        chances=_checked(Chances, table.chances, "chances"),
        noise=table.noise,
        solver_seconds=table.solver_seconds,
    )


def _checked(of: type[T], fields: Mapping[str, object], where: str) -> T:
    known = list(signature(of).parameters)
    if stray := fields.keys() - known:
        raise ScenarioError(f"{where}: unknown {', '.join(sorted(stray))}; there are {', '.join(known)}")
    try:
        return msgspec.convert(fields, of)
    except msgspec.ValidationError as error:
        raise ScenarioError(f"{where}: {error}") from error


def _servers(table: Servers, folder: Path) -> Iterator[ServerSetup]:
    profile = _profile(table.profile, folder)
    for number in range(1, table.count + 1):
        yield ServerSetup(
            name=f"{table.name}{number}",
            profile=profile,
            roles=frozenset(table.roles),
            joins_at=table.joins_at,
            slowness=table.slowness,
            memory_bytes=_bytes(table.memory_gb),
            store_bytes=_bytes(table.store_gb),
            pinned=table.pinned,
            together=table.together,
            host_bytes=_bytes(table.host_gb),
            device=f"{table.device}{number}" if table.device else "",
        )


def _pool(table: PoolTable, folder: Path) -> PoolSetup:
    profile, roles = _profile(table.profile, folder), frozenset(table.roles)
    server = ServerSetup(table.name, profile, roles, memory_bytes=_bytes(table.memory_gb))
    usual = sum(table.cold_start) / 2
    pool = Pool(table.name, profile.model.name, table.min, table.max, roles, profile.device_class, usual, table.price)
    return PoolSetup(pool, server, table.begin, table.cold_start, tuple(table.losses), table.notice)


def _profile(name: str, folder: Path) -> Profile:
    try:
        return load(folder / name) if name.endswith(".toml") else suite.bundled_profile(name)
    except ProfileError as error:
        known = ", ".join(sorted(path.stem for path in suite.PROFILES.glob("*.toml")))
        raise ScenarioError(f"{error}; the project's own are {known}") from error


def _phase(table: PhaseTable, kinds: dict[str, Kind], servers: list[ServerSetup]) -> Phase:
    if unknown := table.mix.keys() - kinds.keys():
        raise ScenarioError(f"a phase mixes {', '.join(sorted(unknown))}; the kinds are {', '.join(kinds) or 'none'}")
    if sum(bool(way) for way in (table.rate, table.load, table.backlog)) != 1:
        raise ScenarioError("a phase has exactly one of rate, load and backlog")
    mix = tuple((weight, kinds[name]) for name, weight in table.mix.items())
    phase = Phase(table.seconds, mix, table.rate, table.cv, table.swing, table.period, table.backlog)
    return at_load(table.load, servers, phase) if table.load else phase


def _with_roles(servers: list[ServerSetup], phase: Phase, *, exclusive: bool) -> tuple[ServerSetup, ...]:
    """Servers of which the file names the roles keep them."""
    held = [replace(server, pinned=server.pinned or bool(server.roles)) for server in servers]
    planned = {server.name: server.roles for server in with_best_roles(held, phase, exclusive=exclusive)}
    return tuple(replace(server, roles=server.roles or planned[server.name]) for server in servers)


def _fault(table: FaultTable) -> Fault:
    match table.kind:
        case "kill":
            return Kill(table.at, table.server, table.restart_after)
        case "freeze":
            return Freeze(table.at, table.server, table.seconds)
        case "slow":
            return SlowDown(table.at, table.server, table.factor)
        case "leave":
            return Leave(table.at, table.server)
        case "unreachable" if table.sources:
            return Unreachable(table.at, table.server, frozenset(table.sources), table.until)
        case "unreachable":
            raise ScenarioError('unreachable needs from = ["SERVER", "gateway", …], or ["everybody"]')
    raise ScenarioError(f"a fault's kind is kill, freeze, slow, leave or unreachable, not {table.kind!r}")


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else int(gigabytes * 10**9)

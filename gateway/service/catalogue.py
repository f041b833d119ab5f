"""Which models there are, and which of their roles are held by whom. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from wire.params import Adapter, Enhancer, ModelInfo, Upscaler
from wire.types import OPTIONAL, REQUIRED, ModelKey, Role, ServerId

MAX_MODELS = 256
"""Remembered; those that nobody serves any more are forgotten first."""


@dataclass(frozen=True, slots=True)
class _Member:
    key: ModelKey
    roles: frozenset[Role]
    aside: frozenset[Role] = frozenset()
    """Of no use: somebody is not reached."""
    why: str = ""
    adapters: tuple[Adapter, ...] = ()
    brought: Mapping[Role, Upscaler | Enhancer] = field(default_factory=dict)
    """For optional stages."""
    guiders: tuple[str, ...] = ()
    guided_layers: int = 0


class Catalogue:
    """Every model that some server has introduced since start. Stages mix only within one ``ModelKey``."""

    def __init__(self) -> None:
        self._models: dict[ModelKey, ModelInfo] = {}
        """Registered last comes last."""
        self._members: dict[ServerId, _Member] = {}
        self._sizes: Counter[ModelKey] = Counter()
        """Members of each model, never 0: with a thousand servers nobody looks through all of them when one joins."""
        self._holders: dict[ModelKey, Counter[Role]] = {}
        """Of each model with members, those of each role that are of use."""
        self._told: dict[ModelKey, ModelInfo] = {}
        """As clients see it, until something changes."""
        self._listed: tuple[ModelInfo, ...] | None = None
        """What ``models`` says, until then: it is asked at every request …"""
        self._resolved: dict[str, ModelInfo] = {}
        """By name, until then."""
        self._is_ready: bool | None = None
        """… and this at every event."""

    def joined(self, server: ServerId, info: ModelInfo, roles: Iterable[Role]) -> None:
        key = ModelKey(info.key)
        self._models.pop(key, None)
        self._models[key] = info
        member = _Member(
            key,
            frozenset(roles),
            adapters=info.adapters,
            brought=info.brought,
            guiders=info.guiders,
            guided_layers=info.guided_layers,
        )
        self._note(server, member)
        self._forget_surplus()
        self._changed()

    def holds(self, server: ServerId, roles: Iterable[Role]) -> None:
        self._note(server, replace(self._members[server], roles=frozenset(roles)))
        self._changed()

    def set_aside(self, server: ServerId, roles: Iterable[Role], why: str) -> None:
        """These do not count as held by it, none from now on if there are none."""
        member = self._members.get(server)
        if member is not None:
            self._note(server, replace(member, aside=frozenset(roles), why=why))
            self._changed()

    def lost(self, server: ServerId) -> None:
        self._discount(self._members.pop(server))
        self._changed()

    def models(self) -> tuple[ModelInfo, ...]:
        """One for each name: the one that a request for it would get."""
        if self._listed is None:
            names = dict.fromkeys(info.name for info in self._models.values())
            self._listed = tuple(info for name in names if (info := self.resolve(name)) is not None)
        return self._listed

    def resolve(self, name: str) -> ModelInfo | None:
        """The model of that name with all roles held, the one registered last if there are several; else the last."""
        known = self._resolved.get(name)
        if known is not None:
            return known
        named = [info for info in self._models.values() if info.name == name]
        complete = [info for info in named if not self.missing(ModelKey(info.key))]
        candidates = complete or named
        if not candidates:
            return None
        found = self._resolved[name] = self._with_adapters(candidates[-1])
        return found

    def unlike(self, info: ModelInfo) -> tuple[str, ...]:
        """How it differs from each model of its name that somebody serves under another key: no stage mixes them."""
        others = (self._models[key] for key in self._models if key in self._sizes and key != info.key)
        return tuple(_difference(info, other) for other in others if other.name == info.name)

    def missing(self, key: ModelKey) -> list[Role]:
        """Roles that every request needs and nobody holds."""
        held = self._held(key)
        return [role for role in REQUIRED if not held[role]]

    def ready(self) -> bool:
        if self._is_ready is None:
            self._is_ready = any(not self.missing(key) for key in self._models)
        return self._is_ready

    def status(self) -> dict[str, dict[str, object]]:
        """Per model name, what a request for it would find."""
        return {info.name: self._status(ModelKey(info.key)) for info in self.models()}

    def _with_adapters(self, info: ModelInfo) -> ModelInfo:
        """With those that every stage which they change has; as the last server introduced it while there is none."""
        key = ModelKey(info.key)
        if key not in self._told:
            if key in self._sizes:
                offered = {role.value: self._brought(key, role) for role in OPTIONAL}
                info = msgspec.structs.replace(info, adapters=self._offered(key), **offered, **self._guiders(key))
            self._told[key] = info
        return self._told[key]

    def _guiders(self, key: ModelKey) -> Mapping[str, object]:
        """Those that all its servers have, whatever they hold now: they are no part of the key, and an older server
        would guide as ever without a word."""
        members = [member for member in self._members.values() if member.key == key]
        first, *others = dict.fromkeys(member.guiders for member in members)
        common = tuple(name for name in first if all(name in other for other in others))
        return {"guiders": common, "guided_layers": max(member.guided_layers for member in members)}

    def _brought(self, key: ModelKey, role: Role) -> Upscaler | Enhancer | None:
        """For an optional stage: of several the one that is held, and of these the one that came last. One that nobody
        holds is loaded when it is asked for."""
        members = [member for member in self._members.values() if member.key == key and role in member.brought]
        held = [member for member in members if role in member.roles - member.aside]
        found = held or members
        return found[-1].brought[role] if found else None

    def _offered(self, key: ModelKey) -> tuple[Adapter, ...]:
        """One for each name; of other files under one name the last. A role that nobody holds at all is waited for."""
        held, unheld = self._adapters(key), set(self.missing(key))
        complete = {adapter.name: adapter for adapter, roles in held.items() if not set(adapter.roles) - roles}
        waited = {adapter.name: adapter for adapter, roles in held.items() if not set(adapter.roles) - roles - unheld}
        return tuple((waited | complete).values())

    def _adapters(self, key: ModelKey) -> dict[Adapter, set[Role]]:
        """With the roles that are held by servers that have them."""
        held: dict[Adapter, set[Role]] = {}
        for member in self._members.values():
            for adapter in member.adapters if member.key == key else ():
                held.setdefault(adapter, set()).update(member.roles - member.aside)
        return held

    def _status(self, key: ModelKey) -> dict[str, object]:
        held = self._held(key)
        told: dict[str, object] = {"key": key, "roles": {role: held[role] for role in self._stages(key)}}
        told["missing"] = self.missing(key)
        aside = {server: member.why for server, member in self._members.items() if member.key == key and member.aside}
        lacking = {adapter.name: sorted(set(adapter.roles) - roles) for adapter, roles in self._adapters(key).items()}
        lacking = {name: roles for name, roles in lacking.items() if roles}
        return told | ({"set_aside": aside} if aside else {}) | ({"loras_lacked_by": lacking} if lacking else {})

    def _stages(self, key: ModelKey) -> list[Role]:
        """Those of the model, with the optional ones that some server brings."""
        return [role for role in Role if role in REQUIRED or self._brought(key, role) is not None]

    def _held(self, key: ModelKey) -> Counter[Role]:
        return self._holders.get(key, Counter())

    def _note(self, server: ServerId, member: _Member) -> None:
        if server in self._members:
            self._discount(self._members[server])
        self._members[server] = member
        self._sizes[member.key] += 1
        self._holders.setdefault(member.key, Counter()).update(member.roles - member.aside)

    def _discount(self, member: _Member) -> None:
        self._sizes[member.key] -= 1
        self._holders[member.key].subtract(member.roles - member.aside)
        if not self._sizes[member.key]:
            del self._sizes[member.key], self._holders[member.key]

    def _changed(self) -> None:
        self._told.clear()
        self._resolved.clear()
        self._listed = self._is_ready = None

    def _forget_surplus(self) -> None:
        surplus = len(self._models) - MAX_MODELS
        if surplus > 0:
            for key in [key for key in self._models if key not in self._sizes][:surplus]:
                del self._models[key]


_TOLD = {
    "formats": "formats of weights",
    "dtype": "dtype",
    "attention": "attention backend",
    "step_caches": "step caches",
    "revisions": "revisions of components",
}
"""What a key stands for, as far as it is told apart from it; what is looked for first comes first."""


def _difference(info: ModelInfo, other: ModelInfo) -> str:
    for name, what in _TOLD.items():
        own, theirs = getattr(info, name), getattr(other, name)
        if own != theirs:
            return f"{what} ({own or 'none'} here, {theirs or 'none'} there)"
    return "serving.json, tiles of the VAE, or what writes pictures"

"""Which models there are, and which of their roles are held by whom. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from wire.params import ModelInfo
from wire.types import ModelKey, Role, ServerId

MAX_MODELS = 256
"""Remembered; those that nobody serves any more are forgotten first."""


@dataclass(slots=True)
class _Member:
    key: ModelKey
    roles: frozenset[Role]
    aside: frozenset[Role] = frozenset()
    """Of no use: somebody is not reached."""
    why: str = ""


class Catalogue:
    """Every model that some server has introduced since start. Stages mix only within one ``ModelKey``."""

    def __init__(self) -> None:
        self._models: dict[ModelKey, ModelInfo] = {}
        """Registered last comes last."""
        self._members: dict[ServerId, _Member] = {}

    def joined(self, server: ServerId, info: ModelInfo, roles: Iterable[Role]) -> None:
        key = ModelKey(info.key)
        self._models.pop(key, None)
        self._models[key] = info
        self._members[server] = _Member(key, frozenset(roles))
        self._forget_surplus()

    def holds(self, server: ServerId, roles: Iterable[Role]) -> None:
        self._members[server].roles = frozenset(roles)

    def set_aside(self, server: ServerId, roles: Iterable[Role], why: str) -> None:
        """These do not count as held by it, none from now on if there are none."""
        member = self._members.get(server)
        if member is not None:
            member.aside, member.why = frozenset(roles), why

    def lost(self, server: ServerId) -> None:
        del self._members[server]

    def models(self) -> tuple[ModelInfo, ...]:
        """One for each name: the one that a request for it would get."""
        names = dict.fromkeys(info.name for info in self._models.values())
        return tuple(info for name in names if (info := self.resolve(name)) is not None)

    def resolve(self, name: str) -> ModelInfo | None:
        """The model of that name with all roles held, the one registered last if there are several; else the last."""
        named = [info for info in self._models.values() if info.name == name]
        complete = [info for info in named if not self.missing(ModelKey(info.key))]
        candidates = complete or named
        return candidates[-1] if candidates else None

    def missing(self, key: ModelKey) -> list[Role]:
        """Roles that nobody holds."""
        held = self._held(key)
        return [role for role in Role if not held[role]]

    def ready(self) -> bool:
        return any(not self.missing(key) for key in self._models)

    def status(self) -> dict[str, object]:
        """Per model name, what a request for it would find."""
        return {info.name: self._status(ModelKey(info.key)) for info in self.models()}

    def _status(self, key: ModelKey) -> dict[str, object]:
        held = self._held(key)
        told: dict[str, object] = {"key": key, "roles": {role: held[role] for role in Role}}
        told["missing"] = self.missing(key)
        aside = {server: member.why for server, member in self._members.items() if member.key == key and member.aside}
        return told | ({"set_aside": aside} if aside else {})

    def _held(self, key: ModelKey) -> Counter[Role]:
        members = (member for member in self._members.values() if member.key == key)
        return Counter(role for member in members for role in member.roles - member.aside)

    def _forget_surplus(self) -> None:
        served = {member.key for member in self._members.values()}
        unserved = [key for key in self._models if key not in served]
        for key in unserved[: max(0, len(self._models) - MAX_MODELS)]:
            del self._models[key]

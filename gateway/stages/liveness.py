"""Which stage servers are here: introductions, proofs of life, losses. Pure: no socket, no clock.

Knows nothing of jobs; what a server says about them is passed on as ``Heard``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from wire.errors import ProtocolMismatch
from wire.record import record
from wire.to_gateway import Ask, AskCell, Goodbye, Heartbeat, Hello, RolesReady, ToGateway
from wire.to_stage import Fine, HeartbeatAck, Refused, SayHello, ToStage, Welcome
from wire.types import Role, ServerId, server_name
from wire.version import PROTOCOL, check_protocol

BY_STRANGERS = (Hello, Ask, AskCell)

MAX_REMEMBERED = 4096
"""Former lives of servers, and strangers who were told to introduce themselves."""

SAY_HELLO_EVERY = 1.0
"""Seconds between two such words to one stranger."""

HELLO_BURST = 2048
HELLO_RATE = 200.0
"""Introductions per second that are answered in the long run; others are repeated by their senders. All the servers of
another gateway may come at once, when that one is lost."""

OWN_BURST = 16
OWN_RATE = 1.0
"""Of one server: it has no reason to say who it is again and again."""

ASK_BURST = 64
ASK_RATE = 32.0
"""Questions of other gateways per second."""

GATEWAYS = "~gateways"
"""User of connections that come with the gateways' own key, which they share."""

MAX_FORMS = 32
"""Models of which it is remembered what crosses between their stages."""

MAX_FORMS_BYTES = 256 << 10
"""For all of them together: whoever asks is told all."""

STALL_SECONDS = 1.0
"""A tick that comes so late tells of a gateway that stood still, not of silent servers."""


@record(frozen=True, slots=True)
class Send:
    server: ServerId
    message: ToStage


@record(frozen=True, slots=True)
class Joined:
    """Also when a server that is known introduces itself anew."""

    server: ServerId
    hello: Hello


@record(frozen=True, slots=True)
class Heard:
    server: ServerId
    message: ToGateway


@record(frozen=True, slots=True)
class Lost:
    server: ServerId
    why: str
    clean: bool = False
    """It said goodbye, all its work done."""


@record(frozen=True, slots=True)
class Warn:
    text: str


@record(frozen=True, slots=True)
class TellCell:
    """Answer ``CellState`` to another gateway."""

    peer: ServerId


Report = Joined | Heard | Lost
Effect = Send | Report | TellCell | Warn


@record(frozen=True, slots=True)
class PoolRules:
    gateway: str
    """Incarnation."""
    heartbeat_seconds: float
    liveness_seconds: float
    max_servers: int = 2048
    keys: Mapping[str, str] | None = None
    """With encryption: name → public key of those who may join. ``gpu-*`` are all whose names begin so."""

    def admits(self, user: str, name: str) -> bool:
        """Whether the key that is registered for ``user`` may be used by a process of this ``name``."""
        if self.keys is None or user == name:
            return True
        return user.endswith("*") and name.startswith(user[:-1]) and name not in self.keys


@dataclass(slots=True)
class _Peer:
    hello: Hello
    heard: float
    vitals: Heartbeat
    allowance: _Allowance = field(default_factory=lambda: _Allowance(OWN_BURST, OWN_RATE))
    """Of further introductions."""


@dataclass(slots=True)
class _Allowance:
    """Token bucket."""

    burst: float
    rate: float
    """Per second."""
    level: float = field(init=False)
    at: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.burst

    def take(self, now: float) -> bool:
        self.level = min(self.burst, self.level + self.rate * (now - self.at))
        self.at = now
        if self.level < 1:
            return False
        self.level -= 1
        return True


@dataclass(slots=True)
class _Memory:
    """The latest so many servers, each with a time."""

    times: OrderedDict[ServerId, float] = field(default_factory=OrderedDict)

    def note(self, server: ServerId, now: float) -> None:
        self.times[server] = now
        self.times.move_to_end(server)
        if len(self.times) > MAX_REMEMBERED:
            self.times.popitem(last=False)


class Roster:
    """``hear`` and ``tick`` say what to do, in order. ``now`` never runs backwards."""

    def __init__(self, rules: PoolRules) -> None:
        self._rules = rules
        self._peers: OrderedDict[ServerId, _Peer] = OrderedDict()
        """Who was silent for longest comes first."""
        self._names: dict[str, ServerId] = {}
        self._superseded = _Memory()
        self._told = _Memory()
        self._allowance = _Allowance(HELLO_BURST, HELLO_RATE)
        self._questions = _Allowance(ASK_BURST, ASK_RATE)
        self._forms: dict[str, dict[Role, bytes]] = {}
        """By model key; that of which nobody has told for longest comes first."""

    @property
    def servers(self) -> tuple[ServerId, ...]:
        return tuple(self._peers)

    def vitals(self) -> Mapping[ServerId, Heartbeat]:
        """Every server's last heartbeat: how full its store and its device are."""
        return {server: peer.vitals for server, peer in self._peers.items()}

    def is_here(self, server: ServerId) -> bool:
        return server in self._peers

    def moves(self, server: ServerId) -> bool:
        """Whether it is here and goes to another gateway when told."""
        peer = self._peers.get(server)
        return peer is not None and peer.hello.moves

    def forms(self, server: ServerId) -> dict[Role, bytes]:
        """What servers of its model have told of what crosses between their stages."""
        peer = self._peers.get(server)
        return self._forms.get(peer.hello.model.key, {}) if peer is not None else {}

    def joins(self, server: ServerId) -> bool:
        """Whether it is here and reads messages that come as the frames of one."""
        peer = self._peers.get(server)
        return peer is not None and peer.hello.joins

    def hear(self, server: ServerId, message: ToGateway, now: float, user: str = "") -> list[Effect]:
        """``server`` is the socket identity, ``user`` the name of the key that opened the connection."""
        if isinstance(message, BY_STRANGERS):
            if isinstance(message, AskCell):
                return self._asked(server, now, user)
            return self._greeted(server, message, now, user)
        peer = self._peers.get(server)
        if peer is None:
            return self.stranger(server, now)
        if not self._rules.admits(user, _owner(peer.hello)):
            return [Warn(f"a message in the name of {server!r} came with the key of {user!r}: dropped")]
        peer.heard = now
        self._peers.move_to_end(server)
        if isinstance(message, Heartbeat):
            is_news, peer.vitals = _said(message) != _said(peer.vitals), message
            news = [Heard(server, message)] if is_news else []
            return [Send(server, HeartbeatAck(sequence=message.sequence)), *news]
        if isinstance(message, Goodbye):
            return self.lose(server, "it left", clean=True)
        if isinstance(message, RolesReady):
            self._note(peer.hello.model.key, message.forms)
        return [Heard(server, message)]

    def stranger(self, server: ServerId, now: float) -> list[Effect]:
        """Something came from ``server`` that could not be read, or that only a known server may say."""
        if now - self._told.times.get(server, -SAY_HELLO_EVERY) < SAY_HELLO_EVERY:
            return []
        self._told.note(server, now)
        return [Send(server, SayHello())]

    def lose(self, server: ServerId, why: str, *, clean: bool = False) -> list[Effect]:
        peer = self._peers.pop(server, None)
        if peer is None:
            return []
        del self._names[peer.hello.name]
        return [Lost(server, why, clean)]

    def next_wakeup(self) -> float | None:
        """When to ``tick``."""
        oldest = next(iter(self._peers.values()), None)
        return None if oldest is None else oldest.heard + self._rules.liveness_seconds

    def tick(self, now: float) -> list[Effect]:
        due = self.next_wakeup()
        if due is None or now < due:
            return []
        if now - due > STALL_SECONDS:
            return self._excuse(now, now - due)
        limit = now - self._rules.liveness_seconds
        silent = [server for server, peer in self._peers.items() if peer.heard <= limit]
        why = f"silent for {self._rules.liveness_seconds:g} s"
        return [effect for server in silent for effect in self.lose(server, why)]

    def _excuse(self, now: float, seconds: float) -> list[Effect]:
        """What was sent while the gateway stood still has not been read yet."""
        for peer in self._peers.values():
            peer.heard = min(now, peer.heard + seconds + self._rules.heartbeat_seconds)
        return [Warn(f"the gateway stood still for {seconds:.1f} s; no server counts as silent for that")]

    def _greeted(self, server: ServerId, greeting: Hello | Ask, now: float, user: str) -> list[Effect]:
        known = self._peers.get(server)
        if known is not None and not known.allowance.take(now):
            return [Warn(f"{server} introduces itself again and again: this time it is left unanswered")]
        if not self._allowance.take(now):
            return [Warn(f"more than {HELLO_RATE:g} introductions per second: that of {server} is left unanswered")]
        fault = self._fault(server, greeting, user)
        if fault is not None:
            code, message = fault
            return [Send(server, Refused(code=code, message=message)), Warn(f"refused {server}: {message}")]
        if isinstance(greeting, Ask):
            return [Send(server, Fine(gateway=self._rules.gateway, forms=self._forms))]
        return self._introduced(server, greeting, now)

    def _asked(self, peer: ServerId, now: float, user: str) -> list[Effect]:
        if self._rules.keys is not None and user != GATEWAYS:
            return [Warn(f"{peer} asks what only gateways may, with the key of {user!r}")]
        if not self._questions.take(now):
            return [Warn(f"more than {ASK_RATE:g} questions of gateways per second: that of {peer} is left unanswered")]
        return [TellCell(peer)]

    def _introduced(self, server: ServerId, hello: Hello, now: float) -> list[Effect]:
        effects: list[Effect] = []
        former = self._names.get(hello.name)
        if former is not None and former != server:
            self._superseded.note(former, now)
            effects += self.lose(former, f"{hello.name} has started anew")
        self._names[hello.name] = server  # after ``lose``, which takes the name from the former
        peer = self._peers.get(server)
        if peer is None:
            peer = self._peers[server] = _Peer(hello, now, Heartbeat(sequence=0))
        peer.hello, peer.heard, peer.vitals = hello, now, Heartbeat(sequence=0, warm=hello.warm)
        self._note(hello.model.key, hello.forms)
        self._peers.move_to_end(server)
        return [*effects, Send(server, self._welcome()), Joined(server, hello)]

    def _note(self, key: str, forms: Mapping[Role, bytes]) -> None:
        """Copied, as messages on their way may refer to it."""
        if not forms:
            return
        others = {other: known for other, known in self._forms.items() if other != key}
        self._forms = {**others, key: {**self._forms.get(key, {}), **forms}}
        while len(self._forms) > MAX_FORMS or (len(self._forms) > 1 and _nbytes(self._forms) > MAX_FORMS_BYTES):
            del self._forms[next(iter(self._forms))]

    def _fault(self, server: ServerId, hello: Hello | Ask, user: str) -> tuple[str, str] | None:
        """Code and text of why ``hello`` cannot be served, if so.

        That a live server has the name is no fault: whoever restarts a server that hangs comes before it is missed.
        """
        try:
            check_protocol(hello.protocol)
        except ProtocolMismatch:
            # The exception speaks from the gateway's side; the stage server's operator reads this.
            theirs, ours = _dotted(hello.protocol), _dotted(PROTOCOL)
            return "protocol", (
                f"this stage server speaks protocol {theirs}, the gateway {ours}: "
                "the major versions must be equal; upgrade the older side"
            )
        if server != f"{hello.name}/{hello.incarnation}":
            return "identity", f"the socket's identity is {server!r}, not the server's name and incarnation"
        if isinstance(hello, Hello) and not _may_hold(hello):
            return "roles", f"it holds {list(hello.roles)} and is capable of {list(hello.capable)}"
        # Without this, two processes of one name would push each other out for ever.
        if server in self._superseded.times:
            return "name", f"another process named {hello.name!r} has joined since: give each server a name of its own"
        owner = _owner(hello)
        if owner != hello.name and (not hello.name.startswith(f"{owner}.") or hello.name in (self._rules.keys or {})):
            return "name", f"{hello.name!r} is no name for a server of the process {owner!r}"
        keys = self._rules.keys
        if keys is not None and not (self._rules.admits(user, owner) and keys.get(user) == hello.public_key):
            return "key", f"the key shown is registered for {user!r}, not for {hello.name!r}"
        if len(self._peers) >= self._rules.max_servers and hello.name not in self._names:
            most = self._rules.max_servers
            return "full", f"the gateway serves {most} stage servers at most (its DISAGFUSION_MAX_STAGE_SERVERS)"
        return None

    def _welcome(self) -> Welcome:
        return Welcome(
            gateway=self._rules.gateway,
            heartbeat_seconds=self._rules.heartbeat_seconds,
            liveness_seconds=self._rules.liveness_seconds,
            joins=True,
        )


def _nbytes(forms: Mapping[str, Mapping[Role, bytes]]) -> int:
    return sum(len(form) for known in forms.values() for form in known.values())


def _owner(hello: Hello | Ask) -> str:
    """The process's name, which a key is registered for."""
    return server_name(ServerId(hello.device)) if isinstance(hello, Hello) and hello.device else hello.name


def _may_hold(hello: Hello) -> bool:
    """Of several models, a process need not hold any role of each."""
    return bool(hello.roles or hello.device) and set(hello.roles) <= set(hello.capable)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _said(beat: Heartbeat) -> tuple[object, ...]:
    """What others than whoever watches the servers want to know, once it changes."""
    return beat.warm, beat.store_capacity, beat.blocked

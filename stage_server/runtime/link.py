"""The control connection as this side sees it: introduce, keep alive, notice the loss, come back. Pure.

Of several gateways it belongs to one at a time. One that is lost is dialled once more, since a broken connection need
not be a dead gateway, and its work would be lost elsewhere; one that is silent is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from stage_server.runtime.events import Effect, Exit, Inform, Reconnect, Send, Warn
from stage_server.runtime.route import Route
from wire.to_gateway import Heartbeat, Hello
from wire.to_stage import Refused, Welcome


class LinkState(StrEnum):
    DIALLING = "dialling"
    """Nobody reached."""
    GREETING = "greeting"
    """``Hello`` is on its way."""
    WELCOMED = "welcomed"


@dataclass(frozen=True, slots=True)
class LinkTimes:
    """Seconds."""

    greeting: float = 5.0
    """To wait for the answer to a ``Hello``."""
    first_warning: float = 2.0
    """Without a gateway, until the first complaint."""
    warn_every: float = 10.0
    give_up: float | None = None
    """At start only: how long to look for a gateway at all."""
    first_backoff: float = 0.1
    last_backoff: float = 5.0
    dialling: float = 2.0
    """With several gateways: to wait for a connection to one of them …"""
    last_round: float = 1.0
    """… and between two rounds in which none was reached, at most."""


class Link:
    """``hello`` and ``heartbeat`` make the messages at the moment they are sent."""

    def __init__(
        self, route: Route, times: LinkTimes, hello: Callable[[], Hello], heartbeat: Callable[[int], Heartbeat]
    ) -> None:
        self.state = LinkState.DIALLING
        self.gateway = ""
        """Incarnation of the last gateway that welcomed us."""
        self.lost_since: float = 0.0
        """When there was last a gateway; meaningful unless welcomed."""
        self._route = route
        self._times = times
        self._hello = hello
        self._heartbeat = heartbeat
        self._ever_welcomed = False
        self._connected_to = ""
        """Incarnation of the gateway that the log says we are connected to; empty once it says that we are not."""
        self._backoff = times.first_backoff
        self._welcome: Welcome | None = None
        self._sequence = 0
        self._heard = 0.0
        self._next_heartbeat = 0.0
        self._next_warning = 0.0
        self._greeted = 0.0
        self._dialled = 0.0
        self._refusals: dict[str, str] = {}
        """Endpoint → what its gateway said, of those that refused since there last was one."""
        self._is_denied = False
        """Somebody is there and does not let us in."""

    @property
    def welcomed(self) -> bool:
        return self.state is LinkState.WELCOMED

    def start(self, now: float) -> list[Effect]:
        self.lost_since = now
        self._next_warning = now + self._times.first_warning
        return [self._dial(0.0, now)]

    def denied(self, now: float) -> list[Effect]:
        self._is_denied = True
        return self.unreached(now)

    def unreached(self, now: float) -> list[Effect]:
        """Nobody is there. Where there is no other gateway, the socket itself goes on trying."""
        return self._redial(now) if self._route.has_choice and self.state is LinkState.DIALLING else []

    def connected(self, now: float) -> list[Effect]:
        self._is_denied = False
        return self._greet(now) if self.state is LinkState.DIALLING else []

    def say_hello(self, now: float) -> list[Effect]:
        """The gateway has forgotten us, or never knew us. While a ``Hello`` is on its way, it need not be repeated."""
        if not self.welcomed:
            return []
        self._lose(now)
        return self._greet(now)

    def greet_again(self, now: float) -> list[Effect]:
        """What the last ``Hello`` said is no longer so."""
        self._lose(now)
        return self._greet(now)

    def disconnected(self, now: float) -> list[Effect]:
        if not self._connected_to:
            return self._redial(now)
        lost = Warn(f"the connection to the gateway at {self._route.endpoint} was lost")
        return [lost, *self._redial(now, same=self._route.has_choice)]

    def part(self, endpoint: str, now: float) -> list[Effect]:
        """``Goodbye`` has been said: join the gateway at ``endpoint``, with nothing of the former one's."""
        self._lose(now)
        self.state, self.gateway, self._connected_to = LinkState.DIALLING, "", ""
        self._route.go_to(endpoint)
        return [
            Inform(f"goes to the gateway at {endpoint}, as its own has asked"),
            self._dial(0.0, now, farewell=True),
        ]

    def welcome(self, message: Welcome, now: float) -> list[Effect]:
        self.state, self.gateway, self._welcome = LinkState.WELCOMED, message.gateway, message
        self._ever_welcomed = True
        self._backoff = self._times.first_backoff
        self._route.arrived()
        self._refusals.clear()
        self._heard = now
        self._next_heartbeat = now + message.heartbeat_seconds
        if message.gateway == self._connected_to:
            return []  # only introduced anew, for a change of roles perhaps
        self._connected_to = message.gateway
        return [Inform(f"connected to the gateway at {self._route.endpoint} (incarnation {message.gateway})")]

    def refused(self, message: Refused, now: float) -> list[Effect]:
        """The end, once every gateway has refused."""
        endpoint = self._route.endpoint
        refusal = f"the gateway at {endpoint} refuses this server: {message.message} ({message.code})"
        self._refusals[endpoint] = refusal
        if all(each in self._refusals for each in self._route.order):
            return [Exit(2, "; ".join(self._refusals.values()))]
        return [Warn(refusal), *self._redial(now)]

    def heard(self, now: float) -> None:
        """Anything from the gateway proves that it lives."""
        self._heard = now

    def next_wakeup(self) -> float:
        match self.state:
            case LinkState.WELCOMED if self._welcome is not None:
                return min(self._next_heartbeat, self._heard + self._welcome.liveness_seconds)
            case LinkState.GREETING:
                return min(self._next_warning, self._greeted + self._times.greeting)
            case _:
                give_up = self._give_up_at()
                wakeups = [self._next_warning, *([] if give_up is None else [give_up])]
                return min(wakeups if not self._route.has_choice else [*wakeups, self._dialled + self._times.dialling])

    def tick(self, now: float) -> list[Effect]:
        if self._welcome is not None and self.welcomed:
            return self._keep_alive(self._welcome, now)
        give_up = self._give_up_at()
        if give_up is not None and now >= give_up:
            return [Exit(2, f"{self._complaint()}: gave up after {self._times.give_up:g} s")]
        effects: list[Effect] = []
        if now >= self._next_warning:
            self._next_warning = now + self._times.warn_every
            is_unreached = self.state is LinkState.DIALLING and not self._is_denied
            text = f"{self._complaint()} for {now - self.lost_since:.0f} s; still trying"
            effects.append(Warn(text, self._route.endpoint if is_unreached else ""))
        if self._has_waited(now):
            effects += self._redial(now)
        return effects

    def _has_waited(self, now: float) -> bool:
        """Long enough for an answer, or for a connection where there are other gateways."""
        if self.state is LinkState.GREETING:
            return now >= self._greeted + self._times.greeting
        return self._route.has_choice and now >= self._dialled + self._times.dialling

    def _keep_alive(self, welcome: Welcome, now: float) -> list[Effect]:
        if now >= self._heard + welcome.liveness_seconds:
            text = f"the gateway has been silent for {now - self._heard:.1f} s; connecting anew"
            return [Warn(text), *self._redial(now)]
        if now < self._next_heartbeat:
            return []
        self._sequence += 1
        self._next_heartbeat = now + welcome.heartbeat_seconds
        return [Send(self._heartbeat(self._sequence))]

    def _greet(self, now: float) -> list[Effect]:
        self.state, self._greeted = LinkState.GREETING, now
        return [Send(self._hello())]

    def _redial(self, now: float, *, same: bool = False) -> list[Effect]:
        """The next gateway, at once unless all have been tried; or the ``same`` once more."""
        self._lose(now)
        self._connected_to = ""
        self.state = LinkState.DIALLING
        if same or not self._route.advance():
            return [self._dial(0.0, now)]
        most = self._times.last_backoff
        if self._route.has_choice:
            most = min(most, self._times.last_round)
        delay, self._backoff = min(self._backoff, most), min(2 * self._backoff, most)
        return [self._dial(delay, now)]

    def _dial(self, delay: float, now: float, *, farewell: bool = False) -> Reconnect:
        self._dialled = now + delay
        return Reconnect(delay, self._route.endpoint, farewell)

    def _lose(self, now: float) -> None:
        if self.welcomed:
            self.lost_since = now
            self._next_warning = now + self._times.warn_every

    def _give_up_at(self) -> float | None:
        if self._ever_welcomed or self._times.give_up is None:
            return None
        return self.lost_since + self._times.give_up

    def _complaint(self) -> str:
        what = "lets this server in" if self._is_denied else "is reachable"
        if self.state is LinkState.GREETING:
            what = "answers as one"
        return f"no gateway {what} at {self._route}"

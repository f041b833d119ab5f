"""A server with several gateways belongs to one at a time: decisions under a manual clock, and with real sockets."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import msgspec
import pytest

from stage_server.runtime import ask
from stage_server.runtime.ask import Unwelcome
from stage_server.runtime.core import CoreTimes, StageCore
from stage_server.runtime.events import (
    Connected,
    Denied,
    Disconnected,
    Drop,
    Effect,
    Exit,
    Received,
    Reconnect,
    RolesLoaded,
    Send,
    Terminate,
    Tick,
    Unreached,
)
from stage_server.runtime.link import LinkTimes
from stage_server.runtime.route import Route
from wire.params import ImageParams, ModelInfo
from wire.to_gateway import Ask, Goodbye, Heartbeat, Hello, Leaving, RoleInfo, StageFailed
from wire.to_stage import AssignRoles, Fine, Member, MoveTo, Refused, Run, Shutdown, Welcome
from wire.types import REQUIRED, Epoch, Role

GATEWAYS = ("tcp://a:1", "tcp://b:1", "tcp://c:1")
HELLO = Hello(
    protocol=(1, 3),
    name="s",
    incarnation="i",
    model=ModelInfo(name="m", key="m@1", family="f", dtype="float32"),
    device_class="c",
    memory_bytes=1,
    capable={role: RoleInfo() for role in REQUIRED},
    roles=REQUIRED,
    data_endpoint="tcp://127.0.0.1:1",
)
TIMES = CoreTimes(link=LinkTimes(first_backoff=1, last_backoff=4, last_round=2, dialling=2, greeting=5), drain=30)
LIVENESS = 10


class World:
    """The core, its clock, and which gateways it dialled."""

    def __init__(self, gateways: tuple[str, ...] = GATEWAYS, **hello: object) -> None:
        self.now = 0.0
        self.core = StageCore(msgspec.structs.replace(HELLO, **hello), gateways, self, TIMES)
        self.effects: list[Effect] = []
        self.dialled: list[tuple[float, str]] = []
        """With the delay."""
        self.has_ended = False
        self._note(self.core.start(0.0))

    def room(self, role: Role, outputs: int) -> bool:
        return True

    def heartbeat(self, sequence: int) -> Heartbeat:
        return Heartbeat(sequence=sequence)

    @property
    def where(self) -> str:
        return self.dialled[-1][1]

    def on(self, *events: object) -> list[Effect]:
        for event in events:
            self._note(self.core.handle(event, self.now))
        return self.effects

    def hear(self, *messages: object) -> list[Effect]:
        return self.on(*map(Received, messages))

    def at(self, now: float) -> None:
        """All that timers bring until then, or until the end."""
        while not self.has_ended and (wakeup := self.core.next_wakeup()) <= now:
            self.now = max(self.now, wakeup)
            self.on(Tick())
        self.now = now

    def arrive(self, gateway: str = "") -> None:
        """Be welcomed where it dials."""
        self.on(Connected())
        self.hear(Welcome(gateway=gateway or self.where, heartbeat_seconds=2, liveness_seconds=LIVENESS))

    def _note(self, effects: list[Effect]) -> None:
        self.effects = effects
        self.has_ended |= any(isinstance(effect, Exit) for effect in effects)
        self.dialled += [(effect.delay, effect.endpoint) for effect in effects if isinstance(effect, Reconnect)]


def sent(effects: list[Effect], kind: type) -> list:
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


def run(gateway: str, counter: int = 1) -> Run:
    member = Member(epoch=Epoch(gateway, counter), params=ImageParams())
    return Run(role=Role.DIT, members=(member,), remaining_seconds=1000)


@pytest.fixture
def world() -> World:
    made = World()
    made.arrive()
    return made


class TestRoute:
    def test_servers_spread_and_only_those_of_a_lost_gateway_move(self) -> None:
        names = [f"gpu-{number}" for number in range(900)]
        first = {name: Route(name, GATEWAYS).order[0] for name in names}
        assert all(200 < number < 400 for number in Counter(first.values()).values())
        without = {name: Route(name, GATEWAYS[1:]).order[0] for name in names}
        assert all(without[name] == first[name] for name in names if first[name] != GATEWAYS[0])
        assert set(without.values()) == set(GATEWAYS[1:])

    def test_the_order_in_which_gateways_are_named_is_of_no_account(self) -> None:
        assert Route("s", GATEWAYS).order == Route("s", (*GATEWAYS[::-1], GATEWAYS[0])).order

    def test_servers_of_one_process_stay_together(self) -> None:
        first = [World(name=name, device="gpu/i").where for name in ("gpu", "gpu.2", "gpu.3")]
        assert len(set(first)) == 1


class TestLoss:
    def test_a_broken_connection_is_tried_once_more_and_then_the_next_gateway(self, world: World) -> None:
        order = Route("s", GATEWAYS).order
        world.on(Disconnected())
        world.on(Unreached())
        assert world.dialled == [(0, order[0]), (0, order[0]), (0, order[1])]
        world.arrive()
        world.on(Disconnected(), Unreached(), Denied())
        assert [where for _, where in world.dialled[3:]] == [order[1], order[0], order[2]]

    def test_work_is_kept_where_only_the_connection_broke(self, world: World) -> None:
        job = run(world.where)
        world.hear(job)
        world.on(Disconnected())
        (hello,) = sent(world.on(Connected()), Hello)
        assert (hello.gateway, hello.running) == (world.where, (job.members[0].epoch,))

    def test_what_the_lost_one_asked_for_is_dropped_for_the_next(self, world: World) -> None:
        world.hear(run(world.where))
        world.on(Disconnected(), Unreached())
        world.on(Connected())
        dropped = world.hear(Welcome(gateway="another", heartbeat_seconds=2, liveness_seconds=LIVENESS))
        assert type(dropped[1]).__name__ == "Stop"

    def test_a_silent_gateway_is_left_within_the_liveness_limit(self, world: World) -> None:
        first = world.where
        world.at(LIVENESS - 0.1)
        assert world.where == first
        world.at(LIVENESS)
        assert world.where != first
        assert world.dialled[-1][0] == 0

    def test_one_that_takes_no_connection_or_gives_no_answer_is_passed_over(self, world: World) -> None:
        world.at(LIVENESS)
        (_, second), dialled = world.dialled[-1], len(world.dialled)
        world.at(LIVENESS + TIMES.link.dialling)
        assert len(world.dialled) == dialled + 1, "packets are dropped"
        world.on(Connected())
        world.at(world.now + TIMES.link.greeting)
        assert len(world.dialled) == dialled + 2, "it is frozen"
        assert len({second, *(where for _, where in world.dialled[dialled:])}) == 3

    def test_rounds_without_any_gateway_wait_for_each_other_but_not_for_long(self) -> None:
        world = World()
        for _ in range(12):
            world.on(Unreached())
        delays = [delay for delay, _ in world.dialled]
        assert delays == [0, 0, 0, 1, 0, 0, 2, 0, 0, 2, 0, 0, 2]
        assert all(one != other for one, other in pairwise(where for _, where in world.dialled))

    def test_with_a_single_gateway_the_socket_goes_on_trying(self) -> None:
        world = World(GATEWAYS[:1])
        world.on(Unreached(), Denied(), Unreached())
        assert world.dialled == [(0, "tcp://a:1")]

    def test_a_refusal_by_one_is_not_the_end_and_by_all_is(self) -> None:
        world = World()
        for number in range(3):
            assert not [effect for effect in world.effects if isinstance(effect, Exit)]
            world.on(Connected())
            world.hear(Refused(code="full", message=f"no room {number}"))
        (end,) = world.effects
        assert end.code == 2
        assert all(f"no room {number} (full)" in end.message for number in range(3))

    def test_refusals_of_long_ago_do_not_count(self) -> None:
        world = World(GATEWAYS[:2])
        world.on(Connected())
        world.hear(Refused(code="full", message="no room"))
        world.arrive()
        world.on(Disconnected(), Connected())
        world.hear(Refused(code="full", message="no room"))
        assert not [effect for effect in world.effects if isinstance(effect, Exit)]


class TestMove:
    def test_an_idle_server_goes_at_once_with_nothing_of_the_former(self, world: World) -> None:
        effects = world.hear(MoveTo(endpoint="tcp://d:1"))
        assert [type(message) for message in sent(effects, object)] == [Leaving, Goodbye]
        assert Reconnect(0.0, "tcp://d:1", farewell=True) in effects
        (hello,) = sent(world.on(Connected()), Hello)
        assert hello.gateway == ""
        assert hello.limits, "it takes work again"
        welcome = world.hear(Welcome(gateway="d", heartbeat_seconds=2, liveness_seconds=LIVENESS))
        assert not sent(welcome, Leaving)
        assert type(world.hear(run("d"))[0]).__name__ == "Begin"

    def test_a_busy_one_finishes_first_and_takes_nothing_new(self, world: World) -> None:
        here, second = world.where, run(world.where, 2)
        world.hear(run(here))
        world.hear(MoveTo(endpoint="tcp://d:1"))
        assert world.where == here
        (failed,) = sent(world.hear(second), StageFailed)
        assert failed.retryable
        world.at(world.now + 29)
        world.hear(Welcome(gateway=here, heartbeat_seconds=2, liveness_seconds=LIVENESS))
        assert sent(world.effects, Leaving), "a broken connection does not make it forget"

    def test_after_its_time_it_goes_with_work_undone(self, world: World) -> None:
        world.hear(run(world.where))
        world.hear(MoveTo(endpoint="tcp://d:1"))
        for second in range(1, 31):
            world.hear(Welcome(gateway=world.where, heartbeat_seconds=2, liveness_seconds=LIVENESS))
            world.at(second)
        assert world.where == "tcp://d:1"
        assert not [effect for effect in world.effects if isinstance(effect, Exit)]

    def test_where_nobody_is_it_comes_back_to_its_own(self, world: World) -> None:
        world.hear(MoveTo(endpoint="tcp://d:1"))
        world.on(Unreached())
        assert world.where in GATEWAYS
        world.arrive()
        assert type(world.hear(run(world.where))[0]).__name__ == "Begin"

    def test_it_may_have_a_single_gateway_of_its_own(self) -> None:
        world = World(GATEWAYS[:1])
        world.arrive()
        world.hear(MoveTo(endpoint="tcp://d:1"))
        world.on(Unreached())
        assert world.where == "tcp://a:1"

    def test_its_gateway_may_die_before_it_has_gone(self, world: World) -> None:
        world.hear(run(world.where))
        world.hear(MoveTo(endpoint="tcp://d:1"))
        world.on(Disconnected(), Unreached())
        world.arrive("another")
        assert not sent(world.effects, Leaving)
        assert type(world.hear(run("another"))[-1]).__name__ != "Send"

    @pytest.mark.parametrize("order", [Terminate(), Received(Shutdown())])
    def test_told_to_end_meanwhile_it_ends(self, world: World, order: object) -> None:
        world.hear(run(world.where))
        world.hear(MoveTo(endpoint="tcp://d:1"))
        assert not [effect for effect in world.on(order) if isinstance(effect, Exit)]
        world.on(Disconnected())
        world.at(world.now + 40)
        assert world.has_ended
        assert "tcp://d:1" not in [where for _, where in world.dialled]

    def test_one_that_leaves_is_not_moved(self, world: World) -> None:
        world.hear(run(world.where))
        world.on(Terminate())
        assert world.hear(MoveTo(endpoint="tcp://d:1")) == []

    def test_roles_that_change_meanwhile_are_told_to_the_new_gateway(self, world: World) -> None:
        world.hear(AssignRoles(epoch=Epoch(world.where, 1), roles=(Role.DIT,)))
        world.hear(MoveTo(endpoint="tcp://d:1"))
        world.arrive()
        (hello,) = sent(world.on(RolesLoaded(frozenset({Role.DIT}), 1.0)), Hello)
        assert hello.roles == (Role.DIT,)
        assert not [effect for effect in world.effects if isinstance(effect, Drop)]


SILENT = "3"


class TestAsking:
    def asked(self, monkeypatch: pytest.MonkeyPatch, *refusals: str) -> tuple[Fine, ...]:
        """Gateways that refuse with these words; an empty one lets it in."""

        def answer(endpoint: str, *_: object) -> Fine | None:
            if refusal := refusals[int(endpoint)]:
                raise Unwelcome(refusal)
            return None if endpoint == SILENT else Fine(gateway=endpoint)

        monkeypatch.setattr(ask, "ask_gateway", answer)
        question = Ask(protocol=(1, 3), name="s", incarnation="i")
        return ask.ask_gateways([str(number) for number in range(len(refusals))], question, None)

    def test_a_refusal_by_one_is_told(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        assert self.asked(monkeypatch, "it is full", "", "", "") == (Fine(gateway="1"), Fine(gateway="2"))
        assert "it is full" in caplog.text

    def test_a_refusal_by_all_ends_the_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(Unwelcome, match="it is full; wrong key"):
            self.asked(monkeypatch, "it is full", "wrong key")

"""Every decision of the server as events → effects, under a manual clock."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest

from stage_server.runtime.core import CoreTimes, StageCore
from stage_server.runtime.events import (
    Begin,
    Broke,
    Computed,
    Connected,
    Denied,
    DeviceTaken,
    DeviceYielded,
    Disconnected,
    Drop,
    Effect,
    Event,
    Exit,
    Inform,
    InputsFetched,
    InputsHere,
    JobEvent,
    JobKey,
    LoadRoles,
    Previewed,
    Published,
    ReadAhead,
    ReadAheadOver,
    Received,
    Reconnect,
    RolesBroke,
    RolesLoaded,
    RoomFreed,
    Send,
    Stepped,
    Stop,
    Stopped,
    Surrender,
    Surrendered,
    Terminate,
    Tick,
    Tried,
    Try,
    Warn,
)
from stage_server.runtime.jobs import TRANSITIONS, State
from stage_server.runtime.link import LinkTimes
from wire.errors import Code
from wire.params import ImageParams, ModelInfo
from wire.to_gateway import (
    Goodbye,
    Grant,
    HandedOver,
    Heartbeat,
    Hello,
    Leaving,
    Output,
    PeerTried,
    PreviewMade,
    RoleInfo,
    RolesFailed,
    RolesReady,
    StageCancelled,
    StageDone,
    StageFailed,
    Timings,
)
from wire.to_stage import (
    AssignRoles,
    Cancel,
    HandOver,
    HeartbeatAck,
    Member,
    Preload,
    Refused,
    Release,
    Run,
    SayHello,
    SetAside,
    Shutdown,
    ToStage,
    TryPeer,
    Welcome,
)
from wire.types import REQUIRED, Epoch, Handle, Role, ServerId

HELLO = Hello(
    protocol=(1, 0),
    name="s",
    incarnation="i",
    model=ModelInfo(name="m", key="m@1", family="f", dtype="float32"),
    device_class="c",
    memory_bytes=1,
    capable={role: RoleInfo() for role in REQUIRED},
    roles=(Role.ENCODER, Role.DIT),
    data_endpoint="tcp://127.0.0.1:1",
)
TIMES = CoreTimes(
    link=LinkTimes(greeting=5, first_warning=2, warn_every=10, first_backoff=1, last_backoff=4), orphan=60, drain=30
)


class World:
    """The core, a clock, and what came of every event so far."""

    def __init__(
        self, times: CoreTimes = TIMES, gateways: tuple[str, ...] = ("tcp://gateway:1",), **hello: Any
    ) -> None:
        self.now = 0.0
        self.free = 1000
        """Outputs that fit into the store."""
        self.core = StageCore(msgspec.structs.replace(HELLO, **hello), gateways, self, times)
        self.effects: list[Effect] = self.core.start(self.now)
        self.counter = 0

    def room(self, role: Role, outputs: int) -> bool:
        return outputs <= self.free

    def heartbeat(self, sequence: int) -> Heartbeat:
        return Heartbeat(sequence=sequence)

    def on(self, *events: Event) -> list[Effect]:
        """What the last of these events brings."""
        for event in events:
            self.effects = self.core.handle(event, self.now)
        return self.effects

    def hear(self, *messages: ToStage) -> list[Effect]:
        return self.on(*map(Received, messages))

    def at(self, now: float) -> list[Effect]:
        """All that timers bring until then, or until the end."""
        effects: list[Effect] = []
        while not any(isinstance(effect, Exit) for effect in effects) and (wakeup := self.core.next_wakeup()) <= now:
            self.now = max(self.now, wakeup)
            effects += self.on(Tick())
        self.now = now
        return effects

    def welcome(self, gateway: str = "g1") -> list[Effect]:
        self.on(Connected())
        return self.hear(Welcome(gateway=gateway, heartbeat_seconds=2, liveness_seconds=10))

    def epoch(self, gateway: str = "g1") -> Epoch:
        self.counter += 1
        return Epoch(gateway, self.counter)

    def run(self, role: Role = Role.DIT, seconds: float = 1000, gateway: str = "g1", members: int = 1) -> Run:
        batch = tuple(Member(epoch=self.epoch(gateway), params=ImageParams()) for _ in range(members))
        return Run(role=role, members=batch, remaining_seconds=seconds)


def sent(effects: list[Effect], kind: type) -> list[Any]:
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


def published(job: int, epoch: Epoch) -> Published:
    return Published(JobKey(job), (Output(port="dit", handle=Handle(f"h{epoch.counter}"), nbytes=1),), Timings())


def finished(world: World, job: int, run: Run) -> list[Effect]:
    key = JobKey(job)
    return world.on(InputsHere(key), DeviceTaken(key), Computed(key), published(job, run.members[0].epoch))


@pytest.fixture
def world() -> World:
    made = World()
    made.welcome()
    return made


class TestLink:
    def test_says_hello_as_soon_as_somebody_is_there(self) -> None:
        world = World()
        assert world.effects == [Reconnect(0.0, "tcp://gateway:1")]
        (hello,) = sent(world.on(Connected()), Hello)
        assert hello.limits == {Role.ENCODER: 2, Role.DIT: 2}
        assert world.welcome() == [Inform("connected to the gateway at tcp://gateway:1 (incarnation g1)")]

    def test_tells_when_it_is_connected_and_when_no_longer(self, world: World) -> None:
        said = [effect for effect in (*world.hear(SayHello()), *world.welcome()) if isinstance(effect, Inform | Warn)]
        assert said == [], "only introduced anew"
        lost = Warn("the connection to the gateway at tcp://gateway:1 was lost")
        assert lost in world.on(Disconnected())
        assert lost not in world.on(Disconnected()), "that it is not back yet is said now and then"
        assert Inform("connected to the gateway at tcp://gateway:1 (incarnation g2)") in world.welcome("g2")

    def test_complains_now_and_then_while_nobody_is_there(self) -> None:
        warned = [effect.text for effect in World().at(25) if isinstance(effect, Warn)]
        assert warned == [f"no gateway is reachable at tcp://gateway:1 for {s} s; still trying" for s in (2, 12, 22)]

    def test_who_hangs_up_is_not_called_unreachable(self) -> None:
        world = World()
        (first,) = [effect for effect in world.at(3) if isinstance(effect, Warn)]
        assert first.dial == "tcp://gateway:1"
        world.on(Denied())
        (second,) = [effect for effect in world.at(13) if isinstance(effect, Warn)]
        assert second == Warn("no gateway lets this server in at tcp://gateway:1 for 12 s; still trying")

    def test_tries_a_peer_and_tells_what_the_gateway_says_of_others(self) -> None:
        world = World()
        world.on(Connected())
        world.welcome()
        peer = TryPeer(server=ServerId("b/1"), endpoint="tcp://b:1")
        assert world.on(Received(peer)) == [Try(peer)]
        tried = PeerTried(server="b/1", detail="tcp://b:1: connection refused")
        assert world.on(Tried(tried)) == [Send(tried)]
        aside = SetAside(roles=(Role.DIT,), why="nobody reaches tcp://a:1")
        assert world.on(Received(aside)) == [Warn("this server gets no dit work: nobody reaches tcp://a:1")]

    def test_gives_up_only_where_told_and_only_at_the_start(self) -> None:
        patient = World(CoreTimes(link=LinkTimes(give_up=7)))
        (end,) = [effect for effect in patient.at(7) if isinstance(effect, Exit)]
        assert (end.code, end.message) == (2, "no gateway is reachable at tcp://gateway:1: gave up after 7 s")
        once = World(CoreTimes(link=LinkTimes(give_up=7)))
        once.welcome()
        once.on(Disconnected())
        assert not [effect for effect in once.at(100) if isinstance(effect, Exit)]

    def test_beats_until_the_gateway_falls_silent_then_dials_with_growing_patience(self, world: World) -> None:
        effects = world.at(9.9)
        assert [beat.sequence for beat in sent(effects, Heartbeat)] == [1, 2, 3, 4]
        world.hear(HeartbeatAck(sequence=4))
        assert not [effect for effect in world.at(19.8) if isinstance(effect, Reconnect)]
        assert Reconnect(1, "tcp://gateway:1") in world.at(20)
        delays = []
        for _ in range(4):
            world.on(Connected())
            delays += [effect.delay for effect in world.at(world.now + 5) if isinstance(effect, Reconnect)]
        assert delays == [2, 4, 4, 4]

    def test_repeats_its_hello_when_asked_but_not_twice(self, world: World) -> None:
        assert len(sent(world.hear(SayHello()), Hello)) == 1
        assert world.hear(SayHello()) == []

    def test_a_refusal_is_final(self, world: World) -> None:
        (end,) = world.hear(Refused(code="protocol", message="speak 2.0"))
        assert end == Exit(2, "the gateway at tcp://gateway:1 refuses this server: speak 2.0 (protocol)")

    def test_last_words_wait_for_the_gateway_and_the_rest_does_not(self, world: World) -> None:
        run = world.run()
        world.hear(run)
        world.on(Disconnected())
        assert finished(world, 1, run) == []
        (hello,) = sent(world.on(Connected()), Hello)
        assert (hello.gateway, hello.running, hello.holds) == ("g1", (run.members[0].epoch,), ("h1",))
        assert [type(effect.message) for effect in world.welcome() if isinstance(effect, Send)] == [StageDone]

    def test_without_any_gateway_for_a_minute_it_gives_its_work_up(self, world: World) -> None:
        first, second = world.run(), world.run()
        world.hear(first, second)
        finished(world, 1, first)
        world.on(Disconnected())
        assert not [effect for effect in world.at(59) if isinstance(effect, Drop | Stop)]
        effects = world.at(60)
        assert [effect for effect in effects if isinstance(effect, Drop | Stop)] == [Drop(("h1",)), Stop(JobKey(2))]
        world.on(Stopped(JobKey(2)))
        (hello,) = sent(world.on(Connected()), Hello)
        assert (hello.gateway, hello.running, hello.holds) == ("", (), ())

    def test_another_gateway_finds_a_clean_server(self, world: World) -> None:
        first, second = world.run(), world.run()
        world.hear(first, second)
        finished(world, 1, first)
        world.on(Disconnected(), Connected())
        effects = world.welcome("g2")
        assert Drop(("h1",)) in effects
        assert Stop(JobKey(2)) in effects
        assert sent(world.on(Stopped(JobKey(2))), StageCancelled) == []


class TestJobs:
    def test_events_that_cannot_happen_are_faults(self, world: World) -> None:
        world.hear(world.run())
        with pytest.raises(AssertionError, match="job 1 is fetching: Computed cannot happen"):
            world.on(Computed(JobKey(1)))

    def test_stopped_jobs_swallow_every_event(self) -> None:
        events = {event for row in TRANSITIONS.values() for event in row}
        assert set(TRANSITIONS[State.STOPPING]) == events

    def test_a_late_result_of_a_cancelled_job_is_dropped(self, world: World) -> None:
        run = world.run()
        world.hear(run)
        assert world.hear(Cancel(epochs=(run.members[0].epoch,))) == [Stop(JobKey(1))]
        effects = finished(world, 1, run)
        assert effects[:2] == [Drop(("h1",)), Send(StageCancelled(epoch=run.members[0].epoch))]

    def test_what_a_job_shows_goes_with_an_attempt_that_has_no_result(self, world: World) -> None:
        cancelled, broken = world.run(), world.run()
        shown = [Output(port="decoder", handle=Handle(f"s{number}"), nbytes=1) for number in range(3)]
        world.hear(cancelled, broken)
        for job in (JobKey(1), JobKey(2)):
            world.on(InputsHere(job), DeviceTaken(job))
        (made,) = sent(world.on(Previewed(JobKey(1), 0, 2, 4, shown[0])), PreviewMade)
        epoch = cancelled.members[0].epoch
        assert (made.epoch, made.index, made.step, made.steps, made.output) == (epoch, 0, 2, 4, shown[0])
        assert world.hear(Cancel(epochs=(epoch,))) == [Drop(("s0",)), Stop(JobKey(1))]
        assert world.on(Previewed(JobKey(1), 1, 3, 4, shown[1])) == [Drop(("s1",))]
        world.on(Previewed(JobKey(2), 0, 3, 4, shown[2]))
        broke = world.on(Broke(JobKey(2), Code.ENGINE, "no", retryable=True))
        assert broke[0] == Drop(("s2",))

    def test_the_deadline_stops_a_job_and_says_where_it_was(self, world: World) -> None:
        run = world.run(seconds=1.5)
        world.hear(run)
        world.on(InputsHere(JobKey(1)), DeviceTaken(JobKey(1)))
        assert world.at(1.4) == []
        assert world.at(1.6) == [Stop(JobKey(1))]
        (failed,) = sent(world.on(Stopped(JobKey(1))), StageFailed)
        assert (failed.code, failed.retryable) == (Code.DEADLINE, False)
        assert failed.message == "the deadline passed while the dit job was running"

    def test_the_members_of_an_older_gateways_batch_are_jobs_of_their_own(self, world: World) -> None:
        run = world.run(members=3)
        begun = [effect for effect in world.hear(run) if isinstance(effect, Begin)]
        assert [effect.member for effect in begun] == list(run.members)
        assert world.hear(Cancel(epochs=(run.members[1].epoch,))) == [Stop(JobKey(2))]
        (failed,) = sent(world.on(Broke(JobKey(3), Code.ENGINE, "no", retryable=True)), StageFailed)
        assert failed.epoch == run.members[2].epoch

    def test_a_cancelled_job_whose_deadline_has_passed_was_cancelled(self, world: World) -> None:
        run = world.run(seconds=1)
        world.hear(run)
        assert world.at(1) == [Stop(JobKey(1))]
        assert world.hear(Cancel(epochs=(run.members[0].epoch,))) == []
        assert sent(world.on(Stopped(JobKey(1))), StageCancelled) == [StageCancelled(epoch=run.members[0].epoch)]

    def test_work_for_a_role_that_is_not_here_is_refused(self, world: World) -> None:
        (failed,) = sent(world.hear(world.run(Role.DECODER)), StageFailed)
        assert (failed.code, failed.retryable) == (Code.DRAINING, True)
        assert failed.message == "the server does not hold decoder"

    @pytest.mark.parametrize("events", [(), (InputsHere,), (InputsHere, DeviceTaken)])
    def test_a_dit_job_is_handed_over_wherever_it_is(self, world: World, events: tuple[type[Any], ...]) -> None:
        run = world.run()
        epoch = run.members[0].epoch
        world.hear(run)
        world.on(*(event(JobKey(1)) for event in events))
        assert world.hear(HandOver(epochs=(epoch,))) == [Surrender(JobKey(1))]
        left = Output(port="dit", handle=Handle("begun"), nbytes=1)
        effects = world.on(Surrendered(JobKey(1), 3, left, Timings(steps=3)))
        assert sent(effects, HandedOver) == [HandedOver(epoch=epoch, step=3, output=left, timings=Timings(steps=3))]
        assert world.hear(Release(handles=(Handle("begun"),))) == [Drop((Handle("begun"),))]

    def test_what_is_computed_and_other_roles_are_not_handed_over(self, world: World) -> None:
        run, encoding = world.run(), world.run(Role.ENCODER)
        world.hear(run, encoding)
        world.on(InputsHere(JobKey(1)), DeviceTaken(JobKey(1)), Computed(JobKey(1)))
        assert world.hear(HandOver(epochs=(run.members[0].epoch, encoding.members[0].epoch))) == []

    def test_one_cancelled_meanwhile_leaves_nothing(self, world: World) -> None:
        run = world.run()
        world.hear(run, HandOver(epochs=(run.members[0].epoch,)), Cancel(epochs=(run.members[0].epoch,)))
        effects = world.on(Surrendered(JobKey(1), 3, Output(port="dit", handle=Handle("b"), nbytes=1), Timings()))
        assert effects[:2] == [Drop((Handle("b"),)), Send(StageCancelled(epoch=run.members[0].epoch))]

    def test_a_gateway_that_ignores_credits_is_stopped_short(self, world: World) -> None:
        world.hear(*[world.run(members=32) for _ in range(4)])
        (failed,) = sent(world.hear(world.run()), StageFailed)
        assert failed.message == "more than 128 dit attempts at once"


class TestCredits:
    def test_a_credit_comes_back_when_a_job_ends(self, world: World) -> None:
        first, second = world.run(), world.run()
        assert sent(world.hear(first, second), Grant) == []
        (grant,) = sent(finished(world, 1, first), Grant)
        assert grant.limits == {Role.ENCODER: 2, Role.DIT: 3}

    def test_as_many_as_compute_together_and_one_whose_inputs_come_in_meanwhile(self) -> None:
        world = World(capable={role: RoleInfo(together=4 if role is Role.DIT else 1) for role in REQUIRED})
        world.welcome()
        (hello,) = [effect.message for effect in World().on(Connected()) if isinstance(effect, Send)]
        assert hello.limits == {Role.ENCODER: 2, Role.DIT: 2}
        runs = [world.run() for _ in range(5)]
        assert sent(world.hear(*runs), Grant) == []
        (grant,) = sent(finished(world, 1, runs[0]), Grant)
        assert grant.limits == {Role.ENCODER: 2, Role.DIT: 6}

    def test_a_full_store_gives_none(self, world: World) -> None:
        run = world.run()
        world.hear(run)
        world.free = 0
        assert sent(finished(world, 1, run), Grant) == []
        world.hear(Release(handles=(Handle("h1"),)))
        world.free = 1000
        (grant,) = sent(world.on(RoomFreed()), Grant)
        assert grant.limits[Role.DIT] == 3

    def test_counting_restarts_with_each_hello(self, world: World) -> None:
        world.hear(world.run())
        (hello,) = sent(world.hear(SayHello()), Hello)
        assert hello.limits == {Role.ENCODER: 2, Role.DIT: 1}

    def test_a_full_store_is_told_of_once(self) -> None:
        world = World(roles=(Role.DIT, Role.DECODER))
        world.free = 0
        warned = [effect.text for effect in world.welcome() if isinstance(effect, Warn)]
        assert len(warned) == 2
        assert "no room for another output of dit" in warned[0]
        assert world.on(RoomFreed()) == []
        world.free = 1000
        assert [type(effect.message) for effect in world.on(RoomFreed()) if isinstance(effect, Send)] == [Grant]


class TestRoles:
    def test_loads_only_after_the_roles_that_go_are_idle(self, world: World) -> None:
        run = world.run()
        change = world.epoch()
        assert world.hear(run, AssignRoles(epoch=change, roles=(Role.ENCODER,))) == []
        assert LoadRoles(frozenset({Role.ENCODER})) in finished(world, 1, run)
        effects = world.on(RolesLoaded(frozenset({Role.ENCODER}), 1.5))
        assert sent(effects, RolesReady) == [RolesReady(epoch=change, roles=(Role.ENCODER,), load_seconds=1.5)]

    def test_a_newer_assignment_replaces_one_that_waits(self, world: World) -> None:
        old, new = world.epoch(), world.epoch()
        world.hear(world.run(), AssignRoles(epoch=old, roles=(Role.ENCODER,)))
        effects = world.hear(AssignRoles(epoch=new, roles=(Role.ENCODER, Role.DIT)))
        (failed,) = sent(effects, RolesFailed)
        assert failed.epoch == old
        assert sent(effects, RolesReady)[0].epoch == new

    @pytest.mark.parametrize(
        ("hello", "roles", "why"),
        [
            ({"pinned": True}, (Role.DIT,), "the server is pinned to encoder, dit"),
            ({"capable": {Role.ENCODER: RoleInfo(), Role.DIT: RoleInfo()}}, (Role.DECODER,), "cannot take decoder"),
            ({}, (), "no role at all"),
        ],
    )
    def test_what_it_cannot_become(self, hello: dict[str, Any], roles: tuple[Role, ...], why: str) -> None:
        world = World(**hello)
        world.welcome()
        (failed,) = sent(world.hear(AssignRoles(epoch=world.epoch(), roles=roles)), RolesFailed)
        assert why in failed.message
        assert failed.roles == (Role.ENCODER, Role.DIT)

    def test_a_gateway_that_came_during_the_change_hears_the_outcome(self, world: World) -> None:
        world.hear(AssignRoles(epoch=world.epoch(), roles=(Role.DECODER,)))
        world.on(Disconnected(), Connected())
        world.welcome("g2")
        effects = world.on(RolesLoaded(frozenset({Role.DECODER}), 1))
        assert sent(effects, RolesReady) == []
        assert sent(effects, Hello)[0].roles == (Role.DECODER,)

    def test_kept_roles_are_served_while_others_load(self, world: World) -> None:
        assert world.hear(AssignRoles(epoch=world.epoch(), roles=(Role.ENCODER, Role.DECODER))) == [
            LoadRoles(frozenset({Role.ENCODER, Role.DECODER}))
        ]
        run = world.run(Role.ENCODER)
        assert isinstance(world.hear(run)[0], Begin)
        assert sent(finished(world, 1, run), StageDone)

    def test_ready_tells_what_the_change_took(self, world: World) -> None:
        change = world.epoch()
        world.hear(AssignRoles(epoch=change, roles=(Role.DECODER,)))
        (ready,) = sent(world.on(RolesLoaded(frozenset({Role.DECODER}), 1.5, True, 0.02)), RolesReady)
        assert (ready.load_seconds, ready.from_host, ready.stopped_seconds) == (1.5, True, 0.02)

    def test_roles_that_did_not_come_back_are_not_claimed(self, world: World) -> None:
        world.hear(AssignRoles(epoch=world.epoch(), roles=(Role.DECODER,)))
        (failed,) = sent(world.on(RolesBroke("no memory", frozenset({Role.DIT}))), RolesFailed)
        assert failed.roles == (Role.DIT,)

    def test_reads_ahead_one_wish_at_a_time_and_the_newest_next(self, world: World) -> None:
        assert world.hear(Preload(roles=(Role.DECODER,))) == [ReadAhead(frozenset({Role.DECODER}))]
        assert world.hear(Preload(roles=(Role.DIT,))) == []
        assert world.hear(Preload(roles=(Role.ENCODER,))) == []
        effects = world.on(ReadAheadOver("a broken file"))
        assert effects == [Warn("reading ahead: a broken file"), ReadAhead(frozenset({Role.ENCODER}))]
        assert world.on(ReadAheadOver()) == []
        assert isinstance(world.hear(world.run())[0], Begin)  # nothing of it concerns work

    def test_a_pinned_or_leaving_server_reads_nothing_ahead(self, world: World) -> None:
        world.hear(world.run())
        world.on(Terminate())
        assert world.hear(Preload(roles=(Role.DECODER,))) == []
        pinned = World(pinned=True)
        pinned.welcome()
        assert pinned.hear(Preload(roles=(Role.DECODER,))) == []

    def test_a_failed_change_leaves_the_server_as_it_was(self, world: World) -> None:
        change = world.epoch()
        world.hear(AssignRoles(epoch=change, roles=(Role.DECODER,)))
        (failed,) = sent(world.on(RolesBroke("no memory", frozenset({Role.ENCODER, Role.DIT}))), RolesFailed)
        assert failed == RolesFailed(epoch=change, roles=(Role.ENCODER, Role.DIT), message="no memory")
        assert isinstance(world.hear(world.run())[0], Begin)


class TestLeaving:
    def test_at_once_when_there_is_nothing_to_do(self, world: World) -> None:
        effects = world.on(Terminate())
        assert effects == [Send(Leaving(within=30)), Send(Goodbye()), Exit(0, "all work is done and handed over")]

    def test_waits_for_work_and_outputs_but_not_for_ever(self) -> None:
        world = World(CoreTimes(drain=5))
        world.welcome()
        run = world.run()
        world.hear(run)
        assert world.hear(Shutdown()) == [Send(Leaving(within=5))]
        finished(world, 1, run)
        effects = world.at(5)
        assert sent(effects, Goodbye)
        assert effects[-1] == Exit(0, "leaving after 5 s with 0 attempts and 1 outputs left")

    def test_a_second_signal_is_obeyed_at_once(self, world: World) -> None:
        world.hear(world.run())
        world.on(Terminate())
        assert [effect.code for effect in world.on(Terminate()) if isinstance(effect, Exit)] == [1]


NEXT: dict[State, tuple[type[JobEvent], ...]] = {
    State.FETCHING: (InputsFetched, InputsHere, Broke),
    State.READY: (DeviceTaken, Broke),
    State.RUNNING: (Stepped, Previewed, DeviceYielded, Computed, Broke),
    State.PAUSED: (DeviceTaken,),
    State.PUBLISHING: (Published, Broke),
    State.STOPPING: (InputsFetched, Previewed, Stopped, Published, Broke),
}


class Chaos:
    """Random gateways, threads and connections; remembers what was asked and answered."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World()
        self.asked: set[Epoch] = set()
        self.words: Counter[Epoch] = Counter()
        self.cancelled: set[Epoch] = set()
        self.begun: dict[JobKey, Epoch] = {}
        self.store: set[Handle] = set()
        self.gateway = "g1"
        self.shown = 0

    def step(self) -> None:
        kinds = (self.ask, self.ask, *[self.advance] * 3, self.cancel, self.hand_over, self.release, self.relink)
        self.random.choice(kinds)()

    def settle(self) -> None:
        """Every thread ends, every output is released."""
        self.world.on(Connected())
        self.take(self.world.welcome(self.gateway))
        while self.world.core.jobs():
            self.advance()
        self.take(self.world.hear(Release(handles=tuple(self.store))))

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Begin(job=job, member=member):
                    self.begun[job] = member.epoch
                case Drop(handles):
                    self.store.difference_update(handles)
                case Send(StageDone() | StageFailed() | HandedOver() as word):
                    self.words[word.epoch] += 1
                case Send(StageCancelled(epoch=epoch)):
                    self.cancelled.add(epoch)

    def ask(self) -> None:
        run = self.world.run(self.random.choice(REQUIRED), gateway=self.gateway, members=self.random.randint(1, 3))
        self.asked.update(member.epoch for member in run.members)
        self.take(self.world.hear(run))

    def advance(self) -> None:
        jobs = self.world.core.jobs()
        if not jobs:
            return
        job = self.random.choice(sorted(jobs))
        kind = self.random.choice(NEXT[jobs[job]])
        self.take(self.world.on(self.event(kind, job)))

    def event(self, kind: type[JobEvent], job: JobKey) -> JobEvent:
        if kind is Published:
            epoch = self.begun[job]
            self.store.add(Handle(f"h{epoch.counter}"))
            return published(job, epoch)
        if kind is Surrendered:
            self.shown += 1
            self.store.add(Handle(f"begun{self.shown}"))
            left = Output(port="dit", handle=Handle(f"begun{self.shown}"), nbytes=1)
            return Surrendered(job, 1, left, Timings())
        if kind is Broke:
            return Broke(job, Code.ENGINE, "chance", retryable=True)
        if kind is Stepped:
            return Stepped(job, 1, 4, 0.1)
        if kind is Previewed:
            self.shown += 1
            self.store.add(Handle(f"shown{self.shown}"))
            return Previewed(job, 0, 1, 4, Output(port="decoder", handle=Handle(f"shown{self.shown}"), nbytes=1))
        return DeviceYielded(job, 1) if kind is DeviceYielded else kind(job)  # type: ignore[call-arg]

    def cancel(self) -> None:
        if self.asked:
            self.take(self.world.hear(Cancel(epochs=(self.random.choice(sorted(self.asked)),))))

    def hand_over(self) -> None:
        if self.asked:
            self.take(self.world.hear(HandOver(epochs=(self.random.choice(sorted(self.asked)),))))

    def release(self) -> None:
        if self.store:
            self.take(self.world.hear(Release(handles=(self.random.choice(sorted(self.store)),))))

    def relink(self) -> None:
        if self.random.random() < 0.3:
            self.gateway += "'"
        self.take(self.world.on(Disconnected()))
        self.take(self.world.on(Connected()))
        self.take(self.world.welcome(self.gateway))


@pytest.mark.parametrize("seed", range(200))
def test_whatever_happens_nothing_is_left_and_everything_is_answered_once(seed: int) -> None:
    chaos = Chaos(seed)
    chaos.world.welcome()
    for _ in range(120):
        chaos.step()
    chaos.settle()
    assert chaos.store == set()
    assert chaos.world.core.jobs() == {}
    assert max(chaos.words.values(), default=0) <= 1
    unanswered = chaos.asked - chaos.cancelled - set(chaos.words)
    assert not [epoch for epoch in unanswered if epoch.gateway == chaos.gateway]

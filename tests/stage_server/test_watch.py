"""What counts as standing still, under a manual clock; and what the server does about it."""

from __future__ import annotations

from typing import Any

import pytest

from stage_server.runtime.core import CoreTimes
from stage_server.runtime.events import (
    Broke,
    Computed,
    DeviceTaken,
    DeviceYielded,
    Effect,
    Exit,
    InputsFetched,
    InputsHere,
    JobKey,
    LoadRoles,
    RolesBegun,
    RolesRested,
    Stepped,
    Stopped,
)
from stage_server.runtime.link import LinkTimes
from tests.stage_server.test_core import World, finished, published, sent
from wire.errors import Code
from wire.params import ImageParams
from wire.to_gateway import Goodbye, Grant, Leaving, RoleInfo, RolesFailed, StageCancelled, StageFailed
from wire.to_stage import AssignRoles, Cancel, HeartbeatAck, Member, Run
from wire.types import REQUIRED, Epoch, Role

PATIENCE = 100.0
TIMES = CoreTimes(link=LinkTimes(first_backoff=1, last_backoff=4), stuck=PATIENCE)
ONE, TWO = JobKey(1), JobKey(2)


class Watched(World):
    """Beats of the gateway come all the time: only jobs are silent here."""

    def __init__(self, times: CoreTimes = TIMES, **hello: Any) -> None:
        super().__init__(times, **hello)
        self.welcome()

    def job(self, predicted: float = 0.0, role: Role = Role.DIT, width: int = 64, seconds: float = 1e6) -> Run:
        member = Member(epoch=self.epoch(), params=ImageParams(width=width, height=64))
        run = Run(role=role, members=(member,), remaining_seconds=seconds, predicted_seconds=predicted)
        self.hear(run)
        return run

    def given(self, job: JobKey) -> None:
        """It has the device."""
        self.on(InputsHere(job), DeviceTaken(job))

    def quiet(self, seconds: float) -> list[Effect]:
        """What so much time brings in which no job gives a sign."""
        effects: list[Effect] = []
        end = self.now + seconds
        while self.now < end and not ended(effects):
            effects += self.at(min(end, self.now + 1.0))
            self.hear(HeartbeatAck(sequence=1))
        return effects

    def proven(self, seconds: float = 1.0, predicted: float = 0.0) -> None:
        """A job like those of ``job`` has been done here, with a sign of life every so many seconds."""
        key = JobKey(self.counter + 1)
        run = self.job(predicted)
        self.given(key)
        for step in range(1, 5):
            assert not ended(self.quiet(seconds))
            self.on(Stepped(key, step, 4, seconds))
        self.on(Computed(key), published(key, run.members[0].epoch))


def ended(effects: list[Effect]) -> list[Exit]:
    return [effect for effect in effects if isinstance(effect, Exit)]


@pytest.fixture
def world() -> Watched:
    return Watched()


def test_a_job_that_gives_no_sign_any_more_ends_the_server(world: Watched) -> None:
    world.proven()
    run = world.job()
    world.given(TWO)
    world.on(Stepped(TWO, 1, 4, 1.0))
    assert not ended(world.quiet(PATIENCE - 1))
    effects = world.quiet(2)
    (end,) = ended(effects)
    assert (end.code, end.hands_over) == (1, True)
    assert end.message.startswith("the dit job that was running has shown no sign of life for 100 s. The device")
    assert "--stuck-seconds" in end.message
    (failed,) = sent(effects, StageFailed)
    assert (failed.epoch, failed.code, failed.retryable) == (run.members[0].epoch, Code.STUCK, True)
    assert sent(world.effects, Grant) == []


def test_the_gateway_hears_first_that_the_server_takes_no_more(world: Watched) -> None:
    world.proven()
    world.job()
    world.given(TWO)
    said = [type(message) for message in sent(world.quiet(PATIENCE + 1), object)]
    assert [kind for kind in said if kind in (Leaving, StageFailed, Goodbye)] == [Leaving, StageFailed, Goodbye]


def test_each_step_is_a_sign_of_life(world: Watched) -> None:
    world.proven()
    world.job()
    world.given(TWO)
    for step in range(1, 20):
        assert not ended(world.quiet(PATIENCE - 1))
        world.on(Stepped(TWO, step, 20, 99.0))
    world.on(Computed(TWO))
    assert not ended(world.quiet(PATIENCE - 1))
    (end,) = ended(world.quiet(2))
    assert end.message.startswith("the dit job that was publishing has shown"), "outputs leave the device"


def test_inputs_that_never_reach_the_device_end_the_server(world: Watched) -> None:
    world.proven()
    run = world.job()
    assert not ended(world.quiet(2 * PATIENCE)), "it waits for others' outputs"
    world.on(InputsFetched(TWO))
    assert not ended(world.quiet(PATIENCE - 1))
    effects = world.quiet(2)
    (end,) = ended(effects)
    assert end.message.startswith("the dit job that was fetching has shown")
    assert [(failed.epoch, failed.code) for failed in sent(effects, StageFailed)] == [
        (run.members[0].epoch, Code.STUCK)
    ]


def test_what_waits_or_is_paused_is_not_watched(world: Watched) -> None:
    world.proven()
    world.job()
    assert not ended(world.quiet(100 * PATIENCE))
    world.on(InputsHere(TWO))
    assert not ended(world.quiet(100 * PATIENCE))
    world.on(DeviceTaken(TWO), DeviceYielded(TWO, 1))
    assert not ended(world.quiet(100 * PATIENCE))
    world.on(DeviceTaken(TWO))
    assert not ended(world.quiet(PATIENCE - 1))
    assert ended(world.quiet(2))


def test_the_first_of_a_shape_may_take_longer(world: Watched) -> None:
    world.proven()
    world.job(width=128)
    world.given(TWO)
    assert not ended(world.quiet(5 * PATIENCE - 1))
    assert ended(world.quiet(2))


def test_what_was_predicted_to_be_slow_gets_its_time(world: Watched) -> None:
    world.proven()
    world.job(predicted=40.0)
    world.given(TWO)
    assert not ended(world.quiet(799)), "until the first step the whole job's time is expected"
    world.on(Stepped(TWO, 1, 4, 10.0))
    assert not ended(world.quiet(199))
    assert ended(world.quiet(2))


def test_what_was_slow_here_may_be_so_again_whatever_was_predicted(world: Watched) -> None:
    world.proven(seconds=60.0, predicted=0.1)
    world.job(predicted=0.1)
    world.given(TWO)
    assert not ended(world.quiet(1199))
    assert ended(world.quiet(2))


def test_a_slow_first_one_is_forgotten_when_others_were_quick(world: Watched) -> None:
    world.proven(seconds=60.0)
    world.proven(seconds=1.0)
    world.job()
    world.given(JobKey(3))
    assert ended(world.quiet(PATIENCE + 1))


def test_a_job_that_cannot_be_stopped_is_watched_on(world: Watched) -> None:
    world.proven()
    run = world.job()
    world.given(TWO)
    world.hear(Cancel(epochs=(run.members[0].epoch,)))
    effects = world.quiet(PATIENCE + 1)
    assert [message.epoch for message in sent(effects, StageCancelled)] == [run.members[0].epoch]
    assert ended(effects)[0].message.startswith("the dit job that was running")


def test_one_that_has_failed_or_stopped_is_forgotten(world: Watched) -> None:
    for key, last in ((ONE, Broke(ONE, Code.ENGINE, "no", retryable=True)), (TWO, Stopped(TWO))):
        run = world.job()
        world.given(key)
        world.hear(*([Cancel(epochs=(run.members[0].epoch,))] if key == TWO else []))
        world.on(last)
    assert not ended(world.quiet(100 * PATIENCE))


def test_a_process_that_was_frozen_itself_does_not_blame_its_jobs(world: Watched) -> None:
    world.proven()
    world.job()
    world.given(TWO)
    world.now += 50 * PATIENCE  # and nothing was handled meanwhile
    world.hear(HeartbeatAck(sequence=1))
    assert not ended(world.on(Stepped(TWO, 1, 4, 1.0)))
    assert not ended(world.quiet(PATIENCE - 3))
    assert ended(world.quiet(4)), "but that is allowed for once only"


def test_zero_watches_nothing() -> None:
    world = Watched(CoreTimes(stuck=0.0))
    world.job()
    world.given(ONE)
    assert not ended(world.quiet(100 * PATIENCE))


class TestLoading:
    def begun(self, **hello: Any) -> Watched:
        world = Watched(**hello)
        epoch = Epoch("g1", 77)
        assert LoadRoles(frozenset(REQUIRED)) in world.hear(AssignRoles(epoch=epoch, roles=REQUIRED))
        assert not ended(world.quiet(100 * PATIENCE)), "it waits for the device"
        world.on(RolesBegun())
        return world

    def test_without_end_ends_the_server(self) -> None:
        world = self.begun()
        assert not ended(world.quiet(5 * PATIENCE - 1))
        effects = world.quiet(2)
        (failed,) = sent(effects, RolesFailed)
        assert (failed.epoch, failed.message) == (
            Epoch("g1", 77),
            "a change of roles has not left the device for 500 s",
        )
        assert ended(effects)[0].code == 1

    def test_gets_the_time_that_it_is_known_to_take(self) -> None:
        world = self.begun(capable={role: RoleInfo(load_seconds=20.0) for role in REQUIRED})
        assert not ended(world.quiet(1199))
        world.on(RolesRested())
        assert not ended(world.quiet(100 * PATIENCE))


def test_finished_jobs_leave_nothing_to_watch(world: Watched) -> None:
    finished(world, 1, world.job())
    assert not ended(world.quiet(100 * PATIENCE))

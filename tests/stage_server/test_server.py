"""A stage server over real sockets, with an engine that the test gates step by step."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from typing import Any

import pytest

from stage_server.engine.base import EngineError, NonFinite, WrongSize
from stage_server.engine.forms import Forms
from stage_server.runtime.baton import Baton
from wire.errors import Code
from wire.params import ImageParams
from wire.to_gateway import (
    Fetched,
    Goodbye,
    Grant,
    Heartbeat,
    Hello,
    Leaving,
    Paused,
    Progress,
    RolesFailed,
    RolesReady,
    StageCancelled,
    StageDone,
    StageFailed,
    Started,
)
from wire.to_stage import (
    AssignRoles,
    Cancel,
    HeartbeatAck,
    InputRef,
    Member,
    MoveTo,
    Preload,
    Refused,
    Release,
    Run,
    SayHello,
    Welcome,
)
from wire.types import REQUIRED, Epoch, Handle, Role

MakeBench = Callable[..., Any]


def job(seed: int, steps: int = 4) -> ImageParams:
    return ImageParams(seed=seed, num_inference_steps=steps, height=64, width=64)


def empty(bench: Any) -> bool:
    return bool(bench.store.statistics().used == 0)


async def test_introduces_itself_and_keeps_its_heart_beating(gateway: Any, make_bench: MakeBench) -> None:
    make_bench()
    hello = await gateway.welcome(heartbeat=0.02)
    assert hello.limits == dict.fromkeys(REQUIRED, 2)
    assert hello.roles == REQUIRED
    assert hello.running == hello.holds == ()
    for sequence in (1, 2, 3):
        beat = await gateway.expect(Heartbeat)
        assert beat.sequence == sequence
        await gateway.send(HeartbeatAck(sequence=sequence))


@pytest.mark.parametrize(("joins", "frames"), [(True, 3), (False, 1)])
async def test_what_is_said_at_once_goes_as_one_message_to_gateways_that_read_it(
    gateway: Any, make_bench: MakeBench, joins: bool, frames: int
) -> None:
    make_bench()
    await gateway.welcome(joins=joins)
    await gateway.settle()
    gateway.largest = 0
    epochs = tuple(gateway.epoch() for _ in range(3))
    await gateway.send(Cancel(epochs=epochs))
    assert [(await gateway.expect(StageCancelled)).epoch for _ in epochs] == list(epochs)
    assert gateway.largest == frames


async def test_messages_of_the_gateway_may_come_as_the_frames_of_one(gateway: Any, make_bench: MakeBench) -> None:
    make_bench()
    await gateway.welcome()
    epochs = gateway.epoch(), gateway.epoch()
    await gateway.send(Cancel(epochs=epochs[:1]), b"\xc1 nonsense", Cancel(epochs=epochs[1:]))
    assert [(await gateway.expect(StageCancelled)).epoch for _ in epochs] == list(epochs)


async def test_a_job_from_run_to_release(gateway: Any, make_bench: MakeBench, remote: Any) -> None:
    bench = make_bench()
    await gateway.welcome()
    bench.engine.open(1, 1, 2, 3, 4)
    epoch = await gateway.run(Role.DIT, remote.put(prompt_embeds=b"x"), params=job(1))
    done = await gateway.done(epoch)
    assert [type(m) for m in gateway.seen if hasattr(m, "epoch")] == [Fetched, Started, StageDone]
    (output,) = done.outputs
    assert (output.port, bench.store.get(output.handle).total_bytes) == ("decoder", output.nbytes)
    assert done.timings.steps == 4
    await gateway.send(Release(handles=(output.handle,)))
    await gateway.settle()
    assert empty(bench)


async def test_inputs_come_in_while_the_device_computes(gateway: Any, make_bench: MakeBench, remote: Any) -> None:
    bench = make_bench()
    await gateway.welcome()
    first = await gateway.run(Role.DIT, params=job(1))
    await gateway.expect(Started)
    second = await gateway.run(Role.DIT, remote.put(prompt_embeds=b"x"), params=job(2))
    assert (await gateway.expect(Fetched)).epoch == second
    assert bench.engine.order == []
    bench.engine.open(1, 1, 2, 3, 4)
    bench.engine.open(2, 1, 2, 3, 4)
    await gateway.done(first)
    await gateway.done(second)


async def test_inputs_are_on_the_device_before_it_is_free(gateway: Any, make_bench: MakeBench, remote: Any) -> None:
    bench = make_bench()
    await gateway.welcome()
    first = await gateway.run(Role.DIT, params=job(1, steps=1))
    await gateway.expect(Started)
    second = await gateway.run(Role.DIT, remote.put(prompt_embeds=b"x"), params=job(2, steps=1))
    assert (await gateway.expect(Fetched)).epoch == second
    assert bench.engine.prepared == [1, 2]
    assert bench.engine.order == []
    bench.engine.open(1, 1)
    bench.engine.open(2, 1)
    await gateway.done(first)
    await gateway.done(second)


async def test_outputs_leave_while_the_next_job_computes(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.engine.finish = Event()
    await gateway.welcome()
    first = await gateway.run(Role.DIT, params=job(1, steps=1))
    second = await gateway.run(Role.DIT, params=job(2, steps=1))
    bench.engine.open(1, 1)
    await gateway.expect(Started, lambda message: message.epoch == second)
    bench.engine.finish.set()
    assert (await gateway.expect(StageDone)).epoch == first
    bench.engine.open(2, 1)
    done = await gateway.done(second)
    assert done.timings.steps == 1


async def test_what_fails_after_the_device_keeps_nobody_from_it(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.engine.finish = Event()
    bench.engine.error = NonFinite("NaN")
    await gateway.welcome()
    first = await gateway.run(Role.DIT, params=job(1, steps=1), keep_seconds=1.0)
    bench.engine.open(1, 1)
    bench.engine.finish.set()
    assert (await gateway.expect(StageFailed)).epoch == first
    bench.engine.error = None
    bench.engine.open(2, 1)
    done = await gateway.done(await gateway.run(Role.DIT, params=job(2, steps=1)))
    await gateway.send(Release(handles=tuple(output.handle for output in done.outputs)))
    await gateway.settle()
    assert empty(bench)


async def test_cancelling_a_job_whose_outputs_leave_leaves_nothing(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.engine.finish = Event()
    await gateway.welcome()
    first = await gateway.run(Role.DIT, params=job(1, steps=1))
    second = await gateway.run(Role.DIT, params=job(2, steps=1))
    bench.engine.open(1, 1)
    await gateway.expect(Started, lambda message: message.epoch == second)
    await gateway.send(Cancel(epochs=(first, second)))
    bench.engine.finish.set()
    bench.engine.open(2, 1)
    ended = {(await gateway.expect(StageCancelled)).epoch for _ in range(2)}
    assert ended == {first, second}
    await gateway.settle()
    assert empty(bench)


async def test_without_prefetch_one_job_follows_another(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench(prefetched=0)
    hello = await gateway.welcome()
    assert hello.limits == dict.fromkeys(REQUIRED, 1)
    bench.engine.open(1, 1)
    first = await gateway.run(Role.DIT, params=job(1, steps=1))
    await gateway.expect(Grant, lambda grant: grant.limits[Role.DIT] == 2)
    assert any(isinstance(message, StageDone) and message.epoch == first for message in gateway.seen)


async def test_inputs_of_its_own_store_need_no_socket(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench()
    await gateway.welcome()
    bench.engine.open(1, 1)
    bench.engine.open(2, 1)
    encoded = await gateway.done(await gateway.run(Role.ENCODER, params=job(1, steps=1)))
    nowhere = InputRef(handle=encoded.outputs[0].handle, endpoint="tcp://127.0.0.1:1")
    await gateway.done(await gateway.run(Role.DIT, nowhere, params=job(2, steps=1)))


async def test_an_urgent_job_takes_the_device_between_two_steps(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench()
    await gateway.welcome()
    slow = await gateway.run(Role.DIT, params=job(1))
    await gateway.expect(Started)
    later = await gateway.run(Role.DIT, params=job(2, steps=1))
    await gateway.expect(Fetched)
    urgent = await gateway.run(Role.DECODER, params=job(3, steps=1), preempt=True)
    await gateway.expect(Fetched)
    bench.engine.open(1, 1)
    assert await gateway.expect(Paused) == Paused(epoch=slow, step=1)
    assert (await gateway.expect(Started)).epoch == urgent
    bench.engine.open(3, 1)
    bench.engine.open(1, 2, 3, 4)
    bench.engine.open(2, 1)
    done = [await gateway.expect(StageDone) for _ in range(3)]
    assert {message.epoch for message in done} == {slow, later, urgent}
    assert bench.engine.order == [(1, 1), (3, 1), (1, 2), (1, 3), (1, 4), (2, 1)]


@pytest.fixture
def standing_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """No device is given up because its time is over."""
    monkeypatch.setattr("stage_server.runtime.server.Baton", lambda: Baton(lambda: 0.0))


async def keep_from(gateway: Any) -> tuple[Epoch, Epoch]:
    """Of a dit job that runs, and of the encoder job that is to go before it and to keep the device."""
    await gateway.welcome()
    running = await gateway.run(Role.DIT, params=job(1))
    await gateway.expect(Started)
    urgent = await gateway.run(Role.ENCODER, params=job(2, steps=1), preempt=True, keep_seconds=0.05)
    await gateway.expect(Fetched)
    return running, urgent


@pytest.mark.usefixtures("standing_clock")
async def test_a_paused_job_stays_so_until_the_next_of_the_request_has_come(
    gateway: Any, make_bench: MakeBench
) -> None:
    bench = make_bench()
    running, urgent = await keep_from(gateway)
    bench.engine.open(1, 1, 2, 3, 4)
    bench.engine.open(2, 1)
    await gateway.done(urgent)
    following = await gateway.run(Role.DIT, params=job(3, steps=1), preempt=True)
    bench.engine.open(3, 1)
    await gateway.done(following)
    await gateway.done(running)
    assert bench.engine.order == [(1, 1), (2, 1), (3, 1), (1, 2), (1, 3), (1, 4)]


@pytest.mark.usefixtures("standing_clock")
async def test_a_cancelled_job_keeps_no_device(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench()
    running, urgent = await keep_from(gateway)
    bench.engine.open(1, 1)
    await gateway.expect(Paused)
    await gateway.send(Cancel(epochs=(urgent,)))
    await gateway.settle()
    bench.engine.open(2, 1)
    bench.engine.open(1, 2, 3, 4)
    await gateway.done(running)


async def test_cancelling_in_every_state_leaves_nothing(gateway: Any, make_bench: MakeBench, remote: Any) -> None:
    bench = make_bench()
    await gateway.welcome()
    remote.held_back.clear()
    fetching = await gateway.run(Role.DIT, remote.put(prompt_embeds=b"x"), params=job(1))
    await gateway.send(Cancel(epochs=(fetching,)))
    await gateway.expect(StageCancelled, lambda message: message.epoch == fetching)

    running = await gateway.run(Role.DIT, params=job(2))
    await gateway.expect(Started)
    ready = await gateway.run(Role.DIT, params=job(3))
    await gateway.expect(Fetched)
    await gateway.send(Cancel(epochs=(ready,)))
    await gateway.expect(StageCancelled, lambda message: message.epoch == ready)

    urgent = await gateway.run(Role.DECODER, params=job(4, steps=1), preempt=True)
    await gateway.expect(Fetched)
    bench.engine.open(2, 1)
    await gateway.expect(Paused)
    await gateway.send(Cancel(epochs=(running,)))
    await gateway.expect(StageCancelled, lambda message: message.epoch == running)

    await gateway.send(Cancel(epochs=(urgent,)))
    await gateway.settle()
    bench.engine.open(4, 1)
    await gateway.expect(StageCancelled, lambda message: message.epoch == urgent)
    assert empty(bench)

    bench.engine.open(5, 1)
    finished = await gateway.run(Role.ENCODER, params=job(5, steps=1))
    await gateway.done(finished)
    await gateway.send(Cancel(epochs=(finished,)))
    await gateway.expect(StageCancelled, lambda message: message.epoch == finished)
    assert empty(bench)


async def test_a_running_job_ends_at_its_next_step(gateway: Any, make_bench: MakeBench, monkeypatch: Any) -> None:
    monkeypatch.setattr("stage_server.runtime.phases.REPORT_SECONDS", 0.0)
    bench = make_bench()
    await gateway.welcome()
    epoch = await gateway.run(Role.DIT, params=job(1))
    bench.engine.open(1, 1)
    await gateway.expect(Progress)
    await gateway.send(Cancel(epochs=(epoch,)))
    await gateway.settle()
    assert not [m for m in gateway.seen if isinstance(m, StageCancelled) and m.epoch == epoch]
    bench.engine.open(1, 2)
    await gateway.expect(StageCancelled)
    assert bench.engine.order == [(1, 1), (1, 2)]
    assert empty(bench)


async def test_the_log_names_the_request(gateway: Any, make_bench: MakeBench, caplog: Any) -> None:
    caplog.set_level("INFO", "stage_server")
    bench = make_bench()
    await gateway.welcome()
    bench.engine.open(1, 1)
    await gateway.done(await gateway.run(Role.DIT, params=job(1, steps=1), request="req_good"))
    bench.engine.error = EngineError("no luck")
    bench.engine.open(2, 1)
    await gateway.run(Role.DIT, params=job(2, steps=1), request="req_bad")
    await gateway.expect(StageFailed)
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("req_good dit-1: done; fetch ") for line in lines), lines
    assert "req_bad dit-2: engine_error: no luck" in lines


async def test_a_batch_of_an_older_gateway_is_so_many_jobs(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench()
    await gateway.welcome()
    epochs = {gateway.epoch(), gateway.epoch()}
    members = tuple(Member(epoch=epoch, params=job(1, steps=1)) for epoch in epochs)
    await gateway.send(Run(role=Role.DIT, members=members, remaining_seconds=60))
    kept = (await gateway.expect(Started)).epoch  # whichever stood in line first
    (dropped,) = epochs - {kept}
    await gateway.send(Cancel(epochs=(dropped,)))
    await gateway.expect(StageCancelled, lambda message: message.epoch == dropped)
    bench.engine.open(1, 1)
    done = await gateway.expect(StageDone)
    assert done.epoch == kept
    assert done.timings.batch == 1
    assert bench.store.handles() == (done.outputs[0].handle,)


async def test_a_full_store_withholds_credits_until_there_is_room(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench(store_bytes=2600, roles=(Role.DECODER,))
    hello = await gateway.welcome()
    assert hello.limits == {Role.DECODER: 2}
    handles = []
    for seed in (1, 2):
        bench.engine.open(seed, 1)
        done = await gateway.done(await gateway.run(Role.DECODER, params=job(seed, steps=1)))
        handles.append(done.outputs[0].handle)
    bench.engine.open(3, 1)
    blocked = await gateway.run(Role.DECODER, params=job(3, steps=1))  # beyond the limit: waits for room all the same
    await gateway.settle()
    assert not [message for message in gateway.seen if isinstance(message, Grant)]
    await gateway.send(Release(handles=tuple(handles)))
    assert (await gateway.expect(Grant)).limits[Role.DECODER] > 2
    await gateway.done(blocked)


async def test_an_output_that_never_fits_is_an_error_at_once(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench()
    await gateway.welcome()
    bench.engine.output_bytes = 1_000_000
    epoch = await gateway.run(Role.DIT, params=job(1))
    failed = await gateway.expect(StageFailed)
    assert (failed.epoch, failed.code, failed.retryable) == (epoch, Code.OUTPUT_TOO_LARGE, False)


async def test_a_lost_input_is_named(gateway: Any, make_bench: MakeBench, remote: Any) -> None:
    make_bench()
    await gateway.welcome()
    there = remote.put(prompt_embeds=b"x")
    gone = InputRef(handle=Handle("00" * 16), endpoint=there.endpoint)
    await gateway.run(Role.DIT, there, gone, params=job(1))
    failed = await gateway.expect(StageFailed)
    assert (failed.code, failed.retryable, failed.lost_inputs) == (Code.INPUT_LOST, True, (gone.handle,))


async def test_uploaded_pictures_reach_the_engine(gateway: Any, make_bench: MakeBench, remote: Any) -> None:
    bench = make_bench()
    await gateway.welcome()
    bench.engine.open(1, 1)
    picture = remote.put(image=b"\x89PNG")
    await gateway.done(await gateway.run(Role.ENCODER, images={"image": picture}, params=job(1, steps=1)))
    await gateway.run(Role.ENCODER, images={"image": remote.put(other=1)}, params=job(2, steps=1))
    assert (await gateway.expect(StageFailed)).code == Code.INPUT_LOST


async def test_the_deadline_holds_here_too(gateway: Any, make_bench: MakeBench, remote: Any) -> None:
    bench = make_bench()
    await gateway.welcome()
    remote.held_back.clear()
    await gateway.run(Role.DIT, remote.put(prompt_embeds=b"x"), params=job(1), seconds=0.05)
    failed = await gateway.expect(StageFailed)
    assert (failed.code, failed.retryable) == (Code.DEADLINE, False)
    assert empty(bench)


async def test_another_gateway_drops_the_former_ones_work(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench()
    await gateway.welcome()
    bench.engine.open(1, 1)
    await gateway.done(await gateway.run(Role.ENCODER, params=job(1, steps=1)))
    await gateway.run(Role.DIT, params=job(2))
    await gateway.expect(Started)
    gateway.incarnation = "g2"
    await gateway.send(SayHello())
    hello = await gateway.welcome()
    assert hello.gateway == "g1"
    assert (len(hello.running), len(hello.holds)) == (1, 1)
    assert hello.limits[Role.DIT] == 1
    await gateway.settle()
    bench.engine.open(2, 1)
    bench.engine.open(3, 1)
    done = await gateway.done(await gateway.run(Role.ENCODER, params=job(3, steps=1)))
    assert bench.store.handles() == (done.outputs[0].handle,)
    assert not [m for m in gateway.seen if isinstance(m, StageCancelled) and m.epoch.gateway == "g1"]


async def test_a_result_finished_without_a_gateway_is_reported_later(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench()
    await gateway.welcome()
    epoch = await gateway.run(Role.DIT, params=job(1))
    await gateway.expect(Started)
    await gateway.send(SayHello())
    assert (await gateway.expect(Hello)).running == (epoch,)
    bench.engine.open(1, 1, 2, 3, 4)
    await gateway.send(SayHello())  # ignored: our answer is on its way
    await gateway.send(Welcome(gateway="g1", heartbeat_seconds=5, liveness_seconds=20))
    assert len((await gateway.done(epoch)).outputs) == 1


async def test_a_silent_gateway_is_dialled_anew(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench()
    await gateway.welcome(heartbeat=0.02, liveness=0.1)
    bench.engine.open(1, 1)
    done = await gateway.done(await gateway.run(Role.ENCODER, params=job(1, steps=1)))
    hello = await gateway.expect(Hello)
    assert (hello.gateway, hello.holds) == ("g1", (done.outputs[0].handle,))


async def test_roles_change_once_the_jobs_of_those_that_go_are_done(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench(roles=(Role.ENCODER, Role.DIT))
    await gateway.welcome()
    bench.engine.open(1, 1)
    kept = await gateway.done(await gateway.run(Role.ENCODER, params=job(1, steps=1)))
    running = await gateway.run(Role.DIT, params=job(2, steps=1))
    await gateway.expect(Started)
    change = gateway.epoch()
    await gateway.send(AssignRoles(epoch=change, roles=(Role.ENCODER, Role.DECODER)))
    await gateway.run(Role.DIT, params=job(3))
    refused = await gateway.expect(StageFailed)
    assert (refused.code, refused.retryable) == (Code.DRAINING, True)
    bench.engine.open(2, 1)
    await gateway.done(running)
    ready = await gateway.expect(RolesReady)
    assert (ready.epoch, ready.roles) == (change, (Role.ENCODER, Role.DECODER))
    assert (await gateway.expect(Grant)).limits[Role.DECODER] == 2
    assert kept.outputs[0].handle in bench.store.handles()
    assert bench.engine.roles == {Role.ENCODER, Role.DECODER}


async def test_what_crosses_between_stages_is_learnt_before_roles_are_loaded_and_told_after(
    gateway: Any, make_bench: MakeBench
) -> None:
    bench = make_bench(roles=(Role.ENCODER,))
    await gateway.welcome()
    told = Forms()
    told.note(Role.ENCODER, {Role.DIT: {"size": 64}})
    bench.engine.forms.note(Role.DIT, {Role.DECODER: {"size": 32}})
    await gateway.send(AssignRoles(epoch=gateway.epoch(), roles=(Role.DIT,), forms=told.seen()))
    ready = await gateway.expect(RolesReady)
    assert ready.forms == bench.engine.forms.seen()
    assert bench.engine.forms.stand_ins(Role.ENCODER, Role.DIT) == {"size": 64}
    await gateway.send(SayHello())
    assert (await gateway.expect(Hello)).forms == ready.forms


async def test_kept_roles_are_served_while_another_is_read(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench(roles=(Role.ENCODER,))
    await gateway.welcome()
    bench.engine.disk.clear()
    change = gateway.epoch()
    await gateway.send(AssignRoles(epoch=change, roles=(Role.ENCODER, Role.DIT)))
    bench.engine.open(1, 1)
    await gateway.done(await gateway.run(Role.ENCODER, params=job(1, steps=1)))
    running = await gateway.run(Role.ENCODER, params=job(2, steps=1))
    await gateway.expect(Started)
    bench.engine.disk.set()
    await gateway.settle()
    assert bench.engine.roles == {Role.ENCODER}  # the device is the job's until it ends
    bench.engine.open(2, 1)
    ready = await gateway.expect(RolesReady)  # perhaps before the job's last word
    await gateway.done(running)
    assert (ready.epoch, ready.roles, ready.from_host) == (change, (Role.ENCODER, Role.DIT), False)
    assert ready.stopped_seconds <= ready.load_seconds


async def test_roles_read_ahead_are_told_and_count_as_warm(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench(roles=(Role.ENCODER,))
    await gateway.welcome(heartbeat=0.05)
    bench.engine.disk.clear()
    await gateway.send(Preload(roles=(Role.DIT,)))
    bench.engine.open(1, 1)
    await gateway.done(await gateway.run(Role.ENCODER, params=job(1, steps=1)))
    bench.engine.disk.set()
    await gateway.expect(Heartbeat, lambda beat: beat.warm == (Role.DIT,))
    await gateway.send(AssignRoles(epoch=gateway.epoch(), roles=(Role.DIT,)))
    assert (await gateway.expect(RolesReady)).from_host
    await gateway.expect(Heartbeat, lambda beat: beat.warm == (Role.ENCODER,))


async def test_reading_ahead_that_fails_costs_nothing(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench(roles=(Role.ENCODER,))
    bench.engine.refused = frozenset({Role.DIT})
    await gateway.welcome()
    await gateway.send(Preload(roles=(Role.DIT,)))
    bench.engine.open(1, 1)
    await gateway.done(await gateway.run(Role.ENCODER, params=job(1, steps=1)))
    assert bench.engine.roles == {Role.ENCODER}


async def test_roles_that_cannot_be_loaded_leave_the_former_ones(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench(roles=(Role.ENCODER,))
    bench.engine.refused = frozenset({Role.DIT})
    await gateway.welcome()
    change = gateway.epoch()
    await gateway.send(AssignRoles(epoch=change, roles=(Role.DIT,)))
    failed = await gateway.expect(RolesFailed)
    assert (failed.epoch, failed.roles, failed.message) == (change, (Role.ENCODER,), "no room for dit")
    bench.engine.open(1, 1)
    await gateway.done(await gateway.run(Role.ENCODER, params=job(1, steps=1)))


async def test_leaves_when_its_work_is_done_and_its_outputs_are_gone(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench()
    await gateway.welcome()
    epoch = await gateway.run(Role.DIT, params=job(1, steps=1))
    await gateway.expect(Started)
    bench.server.terminate()
    await gateway.expect(Leaving)
    await gateway.run(Role.DIT, params=job(2))
    assert (await gateway.expect(StageFailed)).code == Code.DRAINING
    bench.engine.open(1, 1)
    done = await gateway.done(epoch)
    assert not bench.task.done()
    await gateway.send(Release(handles=(done.outputs[0].handle,)))
    await gateway.expect(Goodbye)
    assert await bench.task == 0


async def test_a_refusal_ends_the_server(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench()
    await gateway.expect(Hello)
    await gateway.send(Refused(code="protocol", message="speak 2.0"))
    assert await bench.task == 2


async def test_progress_is_reported_now_and_then(gateway: Any, make_bench: MakeBench, monkeypatch: Any) -> None:
    monkeypatch.setattr("stage_server.runtime.phases.REPORT_SECONDS", 0.0)
    bench = make_bench()
    await gateway.welcome()
    bench.engine.open(1, 1, 2)
    await gateway.run(Role.DIT, params=job(1, steps=2))
    first, second = await gateway.expect(Progress), await gateway.expect(Progress)
    assert [(first.step, first.steps), (second.step, second.steps)] == [(1, 2), (2, 2)]
    assert first.step_seconds >= 0


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (NonFinite("the dit's latents holds NaN"), Code.NON_FINITE, True),
        (WrongSize("the picture is 1024x1024, 64x64 was asked for"), Code.WRONG_SIZE, False),
    ],
)
async def test_what_the_engine_found_wrong_with_its_result_is_reported(
    error: Exception, code: Code, retryable: bool, gateway: Any, make_bench: MakeBench
) -> None:
    bench = make_bench()
    await gateway.welcome()
    bench.engine.error = error
    bench.engine.open(1, 1)
    await gateway.run(Role.DECODER, params=job(1, steps=1))
    failed = await gateway.expect(StageFailed)
    assert (failed.code, failed.message, failed.retryable) == (code, str(error), retryable)
    assert empty(bench)


async def test_goes_to_another_gateway_with_a_word_of_goodbye(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench()
    await gateway.welcome()
    other = type(gateway)("g2")
    try:
        await gateway.send(MoveTo(endpoint=other.endpoint))
        await gateway.expect(Leaving)
        await gateway.expect(Goodbye)
        hello = await other.welcome()
        assert (hello.gateway, hello.roles) == ("", REQUIRED)
        assert not bench.task.done()
    finally:
        await bench.close()
        other.close()

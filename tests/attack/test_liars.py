"""Stage servers that say what cannot be: at worst their own work fails, and nobody else notices."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.service.interfaces import DeadlineExceeded, GenerationFailed, NoCapacity
from wire.to_gateway import Grant, Progress, RolesFailed, RolesReady, StageCancelled, StageDone, StageFailed, Timings
from wire.types import Epoch, Handle, Role


def with_outputs(role: Role, **fields: Any) -> Any:
    """Honest, but for the outputs of ``role``."""

    def answer(server, run, member):
        *before, done = server.honest(run, member)
        if run.role is not role:
            return [*before, done]
        return [*before, replace(done, outputs=tuple(replace(output, **fields) for output in done.outputs))]

    return answer


def without_picture(server, run, member):
    *before, done = server.honest(run, member)
    return [*before, replace(done, outputs=()) if run.role is Role.DECODER else done]


def nothing_in_it(server, run, member):
    *before, done = server.honest(run, member)
    return [*before, replace(done, outputs=(server.keep("image", 7),)) if run.role is Role.DECODER else done]


def thrice_and_in_disorder(server, run, member):
    fetched, started, done = server.honest(run, member)
    return [done, started, fetched, done, StageCancelled(epoch=member.epoch), done]


def failing(**fields: Any) -> Any:
    return lambda server, run, member: [
        StageFailed(epoch=member.epoch, message="x" * 10_000, retryable=True, **{"code": "odd\n"} | fields)
    ]


def blaming_inputs(server, run, member):
    lost = tuple(ref.handle for ref in member.inputs)
    return failing(lost_inputs=lost)(server, run, member) if lost else server.honest(run, member)


def every_handle_the_same(server, run, member):
    *before, done = server.honest(run, member)
    return [*before, replace(done, outputs=tuple(replace(output, handle=Handle("same")) for output in done.outputs))]


def refusing_unasked(server, run, member):
    return failing(code="draining")(server, run, member)


def giving_up(server, run, member):
    return [StageCancelled(epoch=member.epoch)]


def chatting(server, run, member):
    epoch = member.epoch
    fetched, started, done = server.honest(run, member)
    return [
        fetched,
        started,
        Progress(epoch=epoch, step=1 << 52, steps=0, step_seconds=0.0),
        Progress(epoch=epoch, step=0, steps=3, step_seconds=1e8),
        RolesReady(epoch=epoch, roles=(), load_seconds=0.0),
        RolesFailed(epoch=Epoch("nobody", 1), roles=(Role.DIT,) * 2, message="no"),
        Grant(limits={Role.DIT: 0}),
        Grant(limits={Role.DIT: 1 << 50}),
        done,
    ]


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        (with_outputs(Role.DECODER, nbytes=1 << 50), None),
        (with_outputs(Role.ENCODER, port="decoder"), None),
        (with_outputs(Role.DECODER, port="dit"), GenerationFailed),
        (with_outputs(Role.DECODER, handle=Handle("unknown")), GenerationFailed),
        (with_outputs(Role.ENCODER, handle=Handle("same")), None),
        (every_handle_the_same, GenerationFailed),
        (refusing_unasked, GenerationFailed),
        (giving_up, GenerationFailed),
        (without_picture, GenerationFailed),
        (nothing_in_it, GenerationFailed),
        (thrice_and_in_disorder, None),
        (failing(), GenerationFailed),
        (failing(lost_inputs=(Handle("unknown"),)), GenerationFailed),
        (blaming_inputs, GenerationFailed),
        (chatting, None),
    ],
)
async def test_a_lie_harms_only_the_liars_own_work(siege, answer, end):
    await siege.impostor("liar", answer)
    if end is None:
        await siege.ask("liar")
    else:
        with pytest.raises(end):
            await siege.ask("liar", deadline=1.0)
    await siege.stands()


@pytest.mark.parametrize("field", [{"batch": 0}, {"steps": -1}, {"compute": -1.0}, {"compute": float("nan")}])
async def test_a_report_that_cannot_be_is_not_read(siege, field):
    """The epoch stays open, and the server is asked to introduce itself anew, which gives its work back."""

    def answer(server, run, member):
        *before, done = server.honest(run, member)
        return [*before, replace(done, timings=replace(done.timings, **field))]

    await siege.impostor("liar", answer)
    with pytest.raises((DeadlineExceeded, NoCapacity)):
        await siege.ask("liar", deadline=0.5)
    assert siege.gateway.pool.malformed >= 1
    await siege.stands()


async def test_work_of_others_cannot_be_reported(siege):
    """Neither while it runs nor afterwards: the picture is the one of the server that was asked for it."""
    thief = await siege.impostor("thief")
    began = asyncio.Event()

    def wait(server, run, member):
        began.set()
        return []

    victim = await siege.impostor("victim", wait)
    asked = asyncio.create_task(siege.ask("victim"))
    await began.wait()
    member = victim.runs[0].members[0]
    loot = replace(thief.keep("image", b"another picture"), port="dit")
    await thief.send(StageDone(epoch=member.epoch, outputs=(loot,), timings=Timings()))
    await thief.until_released(loot)
    victim.answer = type(victim).honest
    await victim.send(*victim.honest(victim.runs[0], member))
    assert (await asked).images == (b"a picture",)
    replay = victim.keep("image", b"again")
    await victim.send(StageDone(epoch=member.epoch, outputs=(replay,), timings=Timings()))
    await victim.until_released(replay)
    await siege.stands()

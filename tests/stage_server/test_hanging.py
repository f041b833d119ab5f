"""A device that hangs, as the operator and the gateway see it: real processes whose engine never comes back."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from typing import Any

from tests.stage_server.hanging import HUNG_WIDTH, LOCKED_WIDTH
from wire.errors import Code
from wire.params import ImageParams
from wire.to_gateway import Goodbye, Leaving, RolesFailed, StageFailed, Started
from wire.to_stage import AssignRoles
from wire.types import Role

Start = Callable[..., subprocess.Popen[str]]
QUICK = ("--stuck-seconds", "0.2")
"""One second for what was not computed before."""


def hanging(start: Start, *options: str, **variables: str) -> subprocess.Popen[str]:
    return start(
        "--role", "encoder", "--drain-timeout", "60", *options, module="tests.stage_server.hanging", **variables
    )


def job(width: int) -> ImageParams:
    return ImageParams(prompt="a red circle", width=width, height=64)


async def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = await asyncio.to_thread(process.communicate, timeout=60)
    return process.returncode, errors


async def test_a_device_that_hangs_ends_its_process_after_a_last_word(gateway: Any, start: Start) -> None:
    process = hanging(start, *QUICK)
    await gateway.welcome()
    first = await gateway.run(Role.ENCODER, params=job(HUNG_WIDTH))
    await gateway.expect(Started, lambda message: message.epoch == first)
    behind = await gateway.run(Role.ENCODER, params=job(64))
    await gateway.expect(Leaving)
    failed = await gateway.expect(StageFailed)
    assert (failed.epoch, failed.code, failed.retryable) == (first, Code.STUCK, True)
    await gateway.expect(Goodbye)
    code, errors = await ended(process)
    assert code == 1, errors
    assert "the encoder job that was running has shown no sign of life" in errors
    assert "Traceback" not in errors
    assert behind not in {message.epoch for message in gateway.seen if isinstance(message, StageFailed)}


async def test_sound_jobs_are_not_disturbed(gateway: Any, start: Start) -> None:
    hanging(start, *QUICK)
    await gateway.welcome()
    for _ in range(10):
        await gateway.done(await gateway.run(Role.ENCODER, params=job(64)))
    await gateway.settle()
    assert not [message for message in gateway.seen if isinstance(message, Leaving | StageFailed)]


async def test_roles_that_never_load_end_the_process(gateway: Any, start: Start) -> None:
    process = hanging(start, *QUICK, "--time-scale", "0.001", HANG_ON_LOAD="1")
    await gateway.welcome()
    await gateway.send(AssignRoles(epoch=gateway.epoch(), roles=(Role.ENCODER, Role.DECODER)))
    failed = await gateway.expect(RolesFailed)
    assert "has not left the device" in failed.message
    assert (await ended(process))[0] == 1


async def test_a_hang_that_holds_the_interpreter_ends_the_process_with_its_stacks(gateway: Any, start: Start) -> None:
    process = hanging(start, *QUICK)
    await gateway.welcome()
    await gateway.run(Role.ENCODER, params=job(LOCKED_WIDTH))
    code, errors = await ended(process)
    assert code == 1
    assert "hanging.py" in errors


async def test_zero_never_ends_it(gateway: Any, start: Start) -> None:
    process = hanging(start, "--stuck-seconds", "0")
    await gateway.welcome()
    epoch = await gateway.run(Role.ENCODER, params=job(HUNG_WIDTH), seconds=1.5)
    await gateway.expect(Started, lambda message: message.epoch == epoch)
    await gateway.settle()
    assert process.poll() is None


async def test_copies_to_the_device_are_watched(gateway: Any, start: Start) -> None:
    process = hanging(start, *QUICK, HANG_ON_PREPARE="1")
    await gateway.welcome()
    epoch = await gateway.run(Role.ENCODER, params=job(HUNG_WIDTH))
    failed = await gateway.expect(StageFailed)
    assert (failed.epoch, failed.code) == (epoch, Code.STUCK)
    code, errors = await ended(process)
    assert code == 1, errors
    assert "the encoder job that was fetching has shown no sign of life" in errors

"""Every message of a stage server as what the scheduler hears."""

from __future__ import annotations

import pytest

from gateway.service import failures, translate
from gateway.service.interfaces import (
    DeadlineExceeded,
    FaultyModel,
    GenerationFailed,
    NoCapacity,
    OutOfDeviceMemory,
    UnsupportedRequest,
)
from scheduler import actions as act
from scheduler import events as ev
from scheduler.cost.work import Target
from scheduler.spec import Output, RoleCost, Timings
from wire import to_gateway as wire
from wire.types import REQUIRED, Epoch, Handle, RequestId, Role, ServerId

A = ServerId("a/1")
E = Epoch("g1", 5)
H = Handle("h")


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (wire.Grant(limits={Role.DIT: 3}), ev.LimitsRaised(A, {Role.DIT: 3})),
        (wire.Leaving(), ev.ServerLeaving(A)),
        (wire.Fetched(epoch=E), ev.JobFetched(A, E)),
        (wire.Started(epoch=E), ev.JobStarted(A, E)),
        (wire.Paused(epoch=E, step=2), ev.JobPaused(A, E, 2)),
        (wire.Progress(epoch=E, step=2, steps=9, step_seconds=0.5), ev.JobProgressed(A, E, 2, 9, 0.5)),
        (
            wire.StageDone(
                epoch=E,
                outputs=(wire.Output(port="dit", handle=H, nbytes=7),),
                timings=wire.Timings(wait=1, fetch=2, compute=3, publish=4, paused=5, steps=6, batch=7, peak_bytes=8),
            ),
            ev.JobDone(A, E, (Output("dit", H, 7),), Timings(1, 2, 3, 4, 5, 6, 7)),
        ),
        (
            wire.StageFailed(epoch=E, code="input_lost", message="gone", retryable=True, lost_inputs=(H,)),
            ev.JobFailed(A, E, "input_lost", "gone", True, (H,)),
        ),
        (wire.StageCancelled(epoch=E), ev.JobCancelled(A, E)),
        (
            wire.RolesReady(epoch=E, roles=(Role.DIT,), load_seconds=1.5),
            ev.RolesReady(A, E, frozenset({Role.DIT}), 1.5),
        ),
        (
            wire.RolesFailed(epoch=E, roles=(Role.DIT,), message="no room"),
            ev.RolesFailed(A, E, frozenset({Role.DIT}), "no room"),
        ),
        (wire.Heartbeat(sequence=1, warm=(Role.DIT,)), ev.RolesWarm(A, frozenset({Role.DIT}))),
        (wire.Ask(protocol=(1, 1), name="a", incarnation="1"), None),
        (wire.Goodbye(), None),
    ],
)
def test_messages_become_events(message, event):
    assert translate.event(A, message) == event


def test_an_introduction_becomes_a_server_with_what_it_still_does(hello):
    said = hello(
        gateway="g1",
        running=(E,),
        holds=(H,),
        pinned=True,
        capable={
            role: wire.RoleInfo(weight_bytes=1, activation_bytes=2, load_seconds=3.0, common_bytes={"t5": 1})
            for role in REQUIRED
        },
    )
    joined = translate.joined(A, said, "g1")
    assert (joined.running, joined.holds, joined.limits) == ((E,), (H,), said.limits)
    assert joined.server.id == A
    assert joined.server.model == "tiny@1"
    assert joined.server.pinned
    assert joined.server.capable[Role.DIT] == RoleCost(1, 2, 3.0, common_bytes={"t5": 1})
    assert joined.server.target == Target("tiny", "cpu-1", "float32")


def test_what_it_does_for_another_gateway_is_not_our_concern(hello):
    joined = translate.joined(A, hello(gateway="g0", running=(E,), holds=(H,)), "g1")
    assert (joined.running, joined.holds) == ((), ())


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("no_capacity", NoCapacity),
        ("deadline", DeadlineExceeded),
        ("bad_request", UnsupportedRequest),
        ("out_of_memory", OutOfDeviceMemory),
        ("output_too_large", OutOfDeviceMemory),
        ("non_finite", FaultyModel),
        ("wrong_size", FaultyModel),
        ("poison", GenerationFailed),
        ("engine_error", GenerationFailed),
    ],
)
def test_failures_are_told_apart_at_the_service_seam(code, kind):
    error = failures.failed(act.Fail(cause=1, reason="", request=RequestId("r"), code=code, message="what happened"))
    assert type(error) is kind
    assert "hat happened" in str(error)


def test_a_rejection_says_when_to_come_back():
    action = act.Reject(cause=1, reason="full", request=RequestId("r"), retry_after_seconds=4.0, predicted_seconds=70.0)
    error = failures.rejected(action)
    assert (error.retry_after_seconds, error.predicted_wait_seconds) == (4.0, 70.0)

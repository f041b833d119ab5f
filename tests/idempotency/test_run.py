"""One answer, many listeners: before it begins, on the way, and after."""

from __future__ import annotations

import asyncio

import pytest

from gateway.idempotency.run import Answer, Head, Origin, Run
from tests.idempotency.conftest import EVENTS, JSON, heard, sent, settle

PARTIAL = b"event: image_generation.partial_image\ndata: {}\n\n"
DONE = b"event: image_generation.completed\ndata: {}\n\n"


@pytest.fixture
def run() -> Run:
    return Run(b"digest", "req_1")


async def test_an_ordinary_answer_is_told_when_it_is_complete_to_all_who_wait_and_all_who_come(run):
    early = [asyncio.create_task(heard(run)) for _ in range(3)]
    await sent(run)
    await settle()
    assert not any(task.done() for task in early)
    run.finish()
    assert await asyncio.gather(*early) == [(Head(200, JSON), b'{"a":1}')] * 3
    assert await heard(run) == (Head(200, JSON), b'{"a":1}')


async def tell(run: Run, *frames: bytes) -> None:
    for frame in frames:
        await run.send({"type": "http.response.body", "body": frame, "more_body": True})


async def test_a_stream_is_told_as_it_comes_and_what_has_passed_is_not_told_again(run):
    early = run.listen()
    first = asyncio.create_task(anext(early))
    await settle()
    await run.send({"type": "http.response.start", "status": 200, "headers": EVENTS})
    assert await first == Head(200, EVENTS)
    await tell(run, b": admitted\n\n", PARTIAL, DONE)
    assert [await anext(early) for _ in range(3)] == [b": admitted\n\n", PARTIAL, DONE]
    late = asyncio.create_task(heard(run))
    await settle()
    await tell(run, PARTIAL, DONE)
    run.finish()
    assert [word async for word in early] == [PARTIAL, DONE]
    assert await late == (Head(200, EVENTS), DONE + PARTIAL + DONE)
    assert await heard(run) == (Head(200, EVENTS), DONE + DONE)
    assert run.complete() == Answer(Head(200, EVENTS), DONE + DONE, "req_1", None)


async def test_a_failure_is_raised_by_all(run):
    early = asyncio.create_task(heard(run))
    await settle()
    run.fail(KeyError("x"))
    for listening in (early, heard(run)):
        with pytest.raises(KeyError):
            await listening


async def test_a_replay_names_the_request_that_it_was_made_for_and_its_length(run):
    run.replay(Answer(Head(200, JSON), b"{}", "req_0"))
    run.finish()
    assert await heard(run) == (Head(200, [*JSON, (b"content-length", b"2")]), b"{}")
    assert (run.origin, run.request_id) == (Origin.REPLAYED, "req_0")


async def test_nothing_sent_is_no_answer(run):
    assert run.complete() is None


async def test_it_knows_its_audience(run):
    with run.attended():
        with run.attended():
            assert run.audience == 2
        assert not run.nobody_left.is_set()
        assert run.somebody_came.is_set()
    assert run.nobody_left.is_set()
    assert not run.somebody_came.is_set()

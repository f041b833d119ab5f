"""What an enhancer made of a prompt is shown to the operator's hook before anything made of it gets out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from gateway.moderation.hook import Question, Stage, Verdict
from gateway.moderation.moderated import Moderated, Rules
from gateway.service.interfaces import (
    Finished,
    ImageRequest,
    Listener,
    ModerationBlocked,
    News,
    Partial,
    Ready,
    Rewritten,
    unheard,
)
from gateway.service.wrapped import Wrapped
from gateway.storage.room import Room
from wire.params import ImageParams

ASKED, WRITTEN = "a red circle", "a crimson disc"
BOTH = frozenset(Stage)


@dataclass
class FakeHook:
    """Allows all prompts but ``forbidden``; each answer waits until ``go`` is set."""

    forbidden: str = ""
    questions: list[Question] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, question: Question) -> Verdict:
        self.questions.append(question)
        if question.prompt != ASKED:
            await self.go.wait()
        return Verdict(question.prompt != self.forbidden)


class Writing(Wrapped):
    """Writes the prompt anew and draws at once, then ends when it is told to."""

    def __init__(self, written: str) -> None:
        self.written = written
        self.listener: Listener = unheard
        self.drawn, self.end, self.was_cancelled = asyncio.Event(), asyncio.Event(), False

    async def generate(self, request: ImageRequest, listener: Listener) -> Finished:
        assert request.enhance
        self.listener = listener
        listener(Rewritten(self.written))
        listener(Ready(0, b"picture"))
        self.drawn.set()
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        return Finished((b"picture",), ())


def begun(
    service: Writing, hook: FakeHook, request_for: Callable[..., ImageRequest], stages: frozenset[Stage] = BOTH
) -> tuple[asyncio.Task[Finished], list[News]]:
    heard: list[News] = []
    moderated = Moderated(service, hook, Rules(stages, "refuse", "withhold"), Room(1000))
    request = request_for(images=(ImageParams(prompt=ASKED),), enhance=True)
    return asyncio.create_task(moderated.generate(request, heard.append)), heard


@pytest.mark.parametrize("stages", [BOTH, frozenset({Stage.BEFORE})])
async def test_pictures_wait_for_the_answer_about_the_rewritten_prompt(request_for, stages):
    service, hook = Writing(WRITTEN), FakeHook()
    task, heard = begun(service, hook, request_for, stages)
    await service.drawn.wait()
    service.end.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert [type(news) for news in heard] == [Rewritten]
    assert not task.done()
    hook.go.set()
    assert (await task).images == (b"picture",)
    assert heard[-1] == Ready(0, b"picture")
    asked = [(question.stage, question.prompt) for question in hook.questions if question.stage is Stage.BEFORE]
    assert asked == [(Stage.BEFORE, ASKED), (Stage.BEFORE, WRITTEN)]


@pytest.mark.parametrize("stages", [BOTH, frozenset({Stage.BEFORE})])
async def test_a_rewritten_prompt_that_is_forbidden_ends_the_request_and_no_picture_gets_out(request_for, stages):
    service, hook = Writing(WRITTEN), FakeHook(forbidden=WRITTEN)
    hook.go.set()
    task, heard = begun(service, hook, request_for, stages)
    with pytest.raises(ModerationBlocked):
        await task
    assert service.was_cancelled
    assert [type(news) for news in heard] == [Rewritten]


async def test_whoever_looks_at_a_picture_is_told_both_prompts(request_for):
    service, hook = Writing(WRITTEN), FakeHook()
    hook.go.set()
    service.end.set()
    task, _ = begun(service, hook, request_for)
    await task
    before, written, after = hook.questions
    assert [json.loads(asked.body()).get("revised_prompt") for asked in (before, written)] == [None, None]
    told = json.loads(after.body())
    assert (told["stage"], told["prompt"], told["revised_prompt"]) == ("after", ASKED, WRITTEN)


async def test_a_prompt_of_which_nothing_came_is_not_asked_about_twice(request_for):
    service, hook = Writing(ASKED), FakeHook()
    service.end.set()
    task, heard = begun(service, hook, request_for, frozenset({Stage.BEFORE}))
    await task
    assert [question.prompt for question in hook.questions] == [ASKED]
    assert heard[-1] == Ready(0, b"picture")


async def test_where_prompts_are_nobodys_affair_rewritten_ones_are_not_either(request_for):
    service, hook = Writing(WRITTEN), FakeHook()
    service.end.set()
    task, _ = begun(service, hook, request_for, frozenset({Stage.AFTER}))
    await task
    assert [question.stage for question in hook.questions] == [Stage.AFTER]


@pytest.mark.parametrize("forbidden", [WRITTEN, ""])
async def test_who_still_has_news_of_a_request_that_is_over_is_not_disturbed(request_for, forbidden):
    service, hook = Writing(WRITTEN), FakeHook(forbidden=forbidden)
    task, heard = begun(service, hook, request_for)
    await service.drawn.wait()
    if forbidden:
        hook.go.set()
    else:
        task.cancel()  # the client is gone
    await asyncio.gather(task, return_exceptions=True)
    for news in (Rewritten(WRITTEN), Partial(0, 0, b"sketch"), Ready(0, b"picture")):
        service.listener(news)
    assert {type(news) for news in heard} == {Rewritten}

"""An ``ImageService`` in front of another: nothing is made of a prompt, and no picture gets out, that the hook forbids.

Whoever asks for pictures (generations, edits, streams, jobs) asks here, so none of them knows of moderation.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from gateway.moderation.hook import Hook, HookFailed, Question, Stage
from gateway.service.interfaces import (
    DeadlineExceeded,
    Finished,
    ImageRequest,
    ImageService,
    Listener,
    ModerationBlocked,
    ModerationUnavailable,
    News,
    Partial,
    Ready,
    Rewritten,
    unheard,
)
from gateway.service.wrapped import Wrapped
from gateway.storage.room import Room
from wire.params import ImageParams

OnFailure = Literal["refuse", "allow"]
PartialImages = Literal["withhold", "check"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rules:
    stages: frozenset[Stage]
    on_failure: OnFailure
    partial_images: PartialImages


class Moderated(Wrapped):
    def __init__(self, service: ImageService, hook: Hook, rules: Rules, room: Room) -> None:
        """``room`` takes the pictures of an edit while the hook looks at them."""
        super().__init__(service)
        self._hook = hook
        self._rules = rules
        self._room = room

    async def generate(self, request: ImageRequest, listener: Listener = unheard) -> Finished:
        """Also raises ``ModerationBlocked``, ``ModerationUnavailable`` and ``RoomTaken``; before ``Admitted`` for what
        was sent, at any time for what was made: pictures, and what an enhancer made of the prompt, which is asked about
        as if it had been sent. The time that the hook takes is the request's."""
        if Stage.BEFORE in self._rules.stages:
            request = await self._let_in(request)
        checks_prompt = Stage.BEFORE in self._rules.stages and request.enhance
        if Stage.AFTER in self._rules.stages or checks_prompt:
            return await self._let_out(request, listener)
        return await self._service.generate(request, listener)

    async def _let_in(self, request: ImageRequest) -> ImageRequest:
        began = asyncio.get_running_loop().time()
        with self._room.share() as share:
            share.take(sum(map(len, request.uploads.values())))
            await self._check(_question(Stage.BEFORE, request, request.uploads))
        left = request.deadline_seconds - (asyncio.get_running_loop().time() - began)
        if left <= 0:
            raise DeadlineExceeded(f"The moderation of the request took its {request.deadline_seconds:g} s.")
        return replace(request, deadline_seconds=left)

    async def _let_out(self, request: ImageRequest, listener: Listener) -> Finished:
        looks_at_pictures = Stage.AFTER in self._rules.stages
        if looks_at_pictures and self._rules.partial_images == "withhold":  # nor need they be made
            request = replace(request, images=tuple(map(_without_previews, request.images)))

        async def check(image: int, data: bytes, revised: str | None) -> None:
            if looks_at_pictures:
                kind = request.images[image].output_format
                asked = _question(Stage.AFTER, request, {"result": data})
                await self._check(replace(asked, picture_format=kind, image_index=image, revised_prompt=revised))

        async def check_prompt(prompt: str) -> None:
            if Stage.BEFORE in self._rules.stages and prompt != request.images[0].prompt:
                await self._check(replace(_question(Stage.BEFORE, request, {}), prompt=prompt))

        try:
            async with asyncio.TaskGroup() as checks:
                gate = _Gate(check, check_prompt, listener, checks)
                finished = await self._service.generate(request, gate.hear)
                gate.check_rest(finished)
        except BaseExceptionGroup as failed:  # the first failure has cancelled the rest, on the stage servers too
            raise failed.exceptions[0] from None
        return finished

    async def _check(self, question: Question) -> None:
        try:
            verdict = await self._hook.ask(question)
        except HookFailed as error:
            if self._rules.on_failure == "allow":
                log.warning("%s: moderation hook (%s): %s; let through", question.request_id, question.stage, error)
                return
            log.error("%s: moderation hook (%s): %s; refused", question.request_id, question.stage, error)  # noqa: TRY400
            raise ModerationUnavailable("This server's moderation does not answer; try again later.") from None
        if not verdict.allowed:
            why = ", ".join(verdict.categories) or "no categories named"
            log.info("%s: blocked by moderation (%s): %s", question.request_id, question.stage, why)
            raise ModerationBlocked("Your request was rejected as a result of the safety system.")


class _Gate:
    """Holds a request's pictures back until each was looked at, and the prompt that an enhancer wrote for them."""

    def __init__(
        self,
        check: Callable[[int, bytes, str | None], Coroutine[object, object, None]],
        check_prompt: Callable[[str], Coroutine[object, object, None]],
        listener: Listener,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._check = check
        self._check_prompt = check_prompt
        self._prompt: asyncio.Task[None] | None = None
        """Looks at the prompt; it comes before any picture."""
        self._revised: str | None = None
        self._listener = listener
        self._tasks = tasks
        self._asked: dict[int, bytes] = {}
        self._out: set[int] = set()
        """Finished pictures that got out; no intermediate one follows them."""

    def hear(self, news: News) -> None:
        match news:
            case Rewritten(prompt):
                self._revised = prompt
                self._prompt = self._begin(self._check_prompt(prompt), "moderate rewritten prompt")
                self._listener(news)
            case Partial(image, _, data):
                self._begin(self._pass(news, image, data), "moderate partial image")
            case Ready(image, _):
                self._asked[image] = news.data
                self._begin(self._pass(news, image, news.data), "moderate image")
            case _:
                self._listener(news)

    def check_rest(self, finished: Finished) -> None:
        """What was not told on the way, or came out otherwise than it was told."""
        for image, data in enumerate(finished.images):
            if self._asked.get(image) != data:
                self._tasks.create_task(self._check(image, data, self._revised), name="moderate image")

    def _begin(self, looking: Coroutine[object, object, None], name: str) -> asyncio.Task[None] | None:
        """None once the request is over, of which the service may not know yet: then nobody waits for anything."""
        try:
            return self._tasks.create_task(looking, name=name)
        except RuntimeError:  # after a refusal, or without the client: the group takes no more
            looking.close()
            return None

    async def _pass(self, news: Partial | Ready, image: int, data: bytes) -> None:
        if self._prompt is not None:
            await self._prompt
        await self._check(image, data, self._revised)
        if image in self._out:
            return
        if isinstance(news, Ready):
            self._out.add(image)
        self._listener(news)


def _question(stage: Stage, request: ImageRequest, pictures: Mapping[str, bytes]) -> Question:
    first = request.images[0]
    return Question(
        stage, request.request_id, request.tenant, request.model, first.prompt, first.negative_prompt, pictures
    )


def _without_previews(image: ImageParams) -> ImageParams:
    return msgspec.structs.replace(image, previews=0)

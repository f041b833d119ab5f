"""Pictures that steer a generation: loaded before its work begins."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace

from gateway.accounts.caller import Caller
from gateway.api.edit_schema import control_sources
from gateway.api.generation import Generation, plan
from gateway.api.models import resolve
from gateway.api.schema import GenerationBody
from gateway.api.state import Api
from gateway.api.usage import uploaded_tokens
from gateway.service.interfaces import DeadlineExceeded
from gateway.storage.room import Share

Pictures = dict[str, bytes]
Wait = Callable[[Coroutine[object, object, Pictures]], Awaitable[Pictures]]


async def prepare_controlled(
    api: Api, caller: Caller, body: GenerationBody, share: Share, seconds: float, wait: Wait
) -> tuple[Generation, Pictures]:
    """What is to be done, and with which pictures; ``wait`` waits for them. Raises ``ApiError``, ``RoomTaken`` or
    ``DeadlineExceeded``."""
    sources = control_sources(body)
    generation = plan(body, resolve(api, body.model, caller), api.settings)  # before anything is fetched

    async def load() -> Pictures:
        try:
            async with asyncio.timeout(seconds):
                return await api.loader.steering(sources, caller.tenant, share)
        except TimeoutError:
            raise DeadlineExceeded(f"The pictures were not ready within {seconds:g} s.") from None

    uploads = await wait(load())
    return replace(generation, uploaded_tokens=uploaded_tokens(uploads, generation.token_side)), uploads

"""Limits and usage of the images API: a ``Visit`` is one request from when its key is known until its last byte.

Whatever ends it, ``RequestContext`` closes it, and so it is recorded once.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import cast

import msgspec
from starlette.requests import Request

from gateway.accounts.caller import Caller, Limits
from gateway.api.errors import ApiError, retry_after
from gateway.api.state import Api
from gateway.database.usage import ATTEMPT, UsageRecord
from gateway.limits.refusals import BudgetUsedUp, LimitReached, Standing
from gateway.service.interfaces import Listener, News, Ready, Took
from wire.types import Role

HEADERS = {
    what: tuple(f"x-ratelimit-{figure}-{what}".encode() for figure in ("limit", "remaining", "reset"))
    for what in ("requests", "images")
}
NO_LIMITS = Limits()
NOBODY_THERE = 499
"""Status of a request whose answer did not begin."""


@dataclass(slots=True)
class Visit:
    caller: Caller
    account: str
    """What rates are counted under."""
    request_id: str
    endpoint: str
    arrived: float = field(default_factory=time.time)
    model: str = ""
    pictures: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Device-seconds per role."""
    limits: Limits = NO_LIMITS
    """The caller's own, with the defaults for the rest."""
    goes_on: bool = False
    """As a job, which is recorded in place of the request that posted it."""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    """For whatever answer it gets."""

    def heard_by(self, listener: Listener) -> Listener:
        """``listener``, behind one that takes the request's use down."""

        def hear(news: News) -> None:
            match news:
                case Took(role, device_seconds):
                    self.seconds[role] += device_seconds
                case Ready():
                    self.pictures += 1
            listener(news)

        return hear

    def record(self, status: int, code: str) -> UsageRecord:
        return UsageRecord(
            id=self.request_id,
            created=self.arrived,
            tenant=self.caller.tenant,
            key=self.caller.key,
            model=self.model,
            endpoint=self.endpoint,
            status=status or NOBODY_THERE,
            code=code,
            images=self.pictures,
            encoder_seconds=self.seconds[Role.ENCODER],
            dit_seconds=self.seconds[Role.DIT],
            decoder_seconds=self.seconds[Role.DECODER],
            enhancer_seconds=self.seconds[Role.ENHANCER],
            upscaler_seconds=self.seconds[Role.UPSCALER],
        )

    def attempt_record(self) -> UsageRecord:
        """Of an attempt at a job that another one follows: its use is charged, and it is no request."""
        return msgspec.structs.replace(self.record(ATTEMPT, ""), status=ATTEMPT, images=0)

    def tell(self, what: str, standing: Standing | None) -> None:
        """OpenAI's headers: how much is allowed, how much is left, and how long until it is more."""
        if standing is not None:
            limit, remaining, reset = HEADERS[what]
            self.headers += (
                (limit, b"%d" % standing.limit),
                (remaining, b"%d" % standing.remaining),
                (reset, duration(standing.reset_seconds)),
            )


def account_of(request: Request, caller: Caller) -> str:
    """What the caller's rates are counted under."""
    return caller.key or f"address:{_network(request)}"


async def check_budget(api: Api, caller: Caller) -> None:
    """Of a job, or the line of a batch, as it is begun: it may have waited for long. Raises ``ApiError`` 429."""
    try:
        await api.limiter.check_budget(api.limiter.limits_of(caller.limits), caller.key)
    except BudgetUsedUp as error:
        raise used_up(error) from None


async def visit(request: Request, api: Api, caller: Caller) -> None:
    """The request counts from here on, before its body is read. Raises ``ApiError`` 429.

    Handlers call it. As one of FastAPI's dependencies it would cost as much again as all that it does.
    """
    endpoint = request.scope["path"].rsplit("/", 1)[-1]
    state = request.scope["state"]
    limits, account = api.limiter.limits_of(caller.limits), account_of(request, caller)
    begun = Visit(caller, account, state["request_id"], endpoint, limits=limits)
    state["visit"], state["headers"], state["ended"] = begun, begun.headers, _recorder(api, begun)
    try:
        standing = await api.limiter.enter(account, limits, budget=caller.key)
    except BudgetUsedUp as error:
        raise used_up(error) from None
    except LimitReached as error:
        begun.tell("requests", error.standing)
        raise limited(error) from None
    begun.tell("requests", standing)


@asynccontextmanager
async def working(request: Request, api: Api, model: str, pictures: int) -> AsyncIterator[Visit]:
    """While the request is worked on. Raises ``ApiError`` 429 before."""
    begun = cast(Visit, request.scope["state"]["visit"])
    begun.model = model
    account, limits = begun.account, begun.limits
    try:
        lease = await api.limiter.take(account, limits)
    except LimitReached as error:
        raise limited(error) from None
    try:
        begun.tell("images", await api.limiter.count_pictures(account, limits, pictures))
        yield begun
    except LimitReached as error:
        begun.tell("images", error.standing)
        raise limited(error) from None
    finally:
        if lease is not None:
            await api.limiter.give_back(lease)


def limited(error: LimitReached) -> ApiError:
    """429: the caller's own limit."""
    hopeless = error.retry_seconds is None
    headers = {"x-should-retry": "false"} if hopeless else retry_after(error.retry_seconds or 0.0)
    return ApiError(str(error), code="rate_limit_exceeded", status=429, kind="rate_limit_error", headers=headers)


def used_up(error: BudgetUsedUp) -> ApiError:
    """429 that no retry helps."""
    code = "insufficient_quota"
    return ApiError(str(error), code=code, status=429, kind=code, headers={"x-should-retry": "false"})


def duration(seconds: float) -> bytes:
    """As OpenAI writes them, rounded up: ``120ms``, ``7s``, ``1m0s``."""
    if seconds < 1:
        return b"%dms" % math.ceil(seconds * 1000)
    whole = math.ceil(seconds)
    return b"%ds" % whole if whole < 60 else b"%dm%ds" % divmod(whole, 60)


def _recorder(api: Api, begun: Visit) -> Callable[[int, str], None]:
    def ended(status: int, code: str) -> None:
        if api.meter is not None and not begun.goes_on:
            api.meter.record(begun.record(status, code))

    return ended


def _network(request: Request) -> str:
    """The client's address; of IPv6 the /64, which is what one customer has."""
    return _network_of(request.client.host) if request.client else ""


@lru_cache(maxsize=4096)
def _network_of(host: str) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ip_network((host, 64), strict=False))

"""Counts that several gateways share, in Redis: windows per minute (by the library ``limits``) and leases of requests
at a time.

Redis may go at any time. Whoever asks is then told ``Unavailable``, and at once from the second question on, and counts
in its own memory; the log has one line when Redis goes and one when it is back.

Windows hold the times of the gateways that counted, so the clocks of gateways must agree: a second of difference is
worth a sixtieth of the limit. Leases go by Redis's own clock.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn, TypeVar
from urllib.parse import urlsplit

from gateway.settings import InvalidSettings

if TYPE_CHECKING:  # not many gateways have a Redis, and the others start without its libraries
    from limits import RateLimitItemPerMinute

ANSWER_SECONDS = 1.0
"""For one question to Redis; it takes a millisecond."""

CONNECTIONS = 16
"""Questions under way; further ones wait their turn, which is no fault of Redis."""

PROBE_SECONDS = 2.0
"""Between two looks whether Redis is back."""

LEASE_SECONDS = 30.0
"""How long the requests of a gateway that died count as under way. Renewed three times as often."""

PREFIX = "disagfusion:limits"

# Each argument after the first two is a lease. Times are Redis's own, in milliseconds.
_NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"
_ACQUIRE = (
    _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
"""
)
_RENEW = (
    _NOW
    + """
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""
)

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class Unavailable(Exception):
    """Redis does not answer, or refuses."""


class Shared:
    """To be made on a running event loop; ``run`` must run as long as it is used."""

    def __init__(self, url: str, lease_seconds: float = LEASE_SECONDS) -> None:
        """Connects to nothing yet. Raises ``InvalidSettings``."""
        parts = urlsplit(url)
        self.where = f"Redis at {parts.hostname or parts.path}{f':{parts.port}' if parts.port else ''}"
        """For messages, without a password."""
        from limits.aio.storage.redis import RedisStorage
        from limits.aio.strategies import MovingWindowRateLimiter

        try:
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import RedisError
        except ModuleNotFoundError:  # an extra
            raise InvalidSettings(
                "DISAGFUSION_RATE_LIMIT_URL: the client of Redis is not installed: pip install 'disagfusion[redis]'"
            ) from None
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                socket_timeout=ANSWER_SECONDS,
                socket_connect_timeout=ANSWER_SECONDS,
                retry=Retry(NoBackoff(), 1),  # for a connection that Redis closed as it was idle
            )
        except ValueError as error:
            raise InvalidSettings(f"DISAGFUSION_RATE_LIMIT_URL: {error}") from error
        self._storage = RedisStorage(
            f"async+{url}",
            implementation="redispy",
            key_prefix=PREFIX,
            connection_pool=pool,  # type: ignore[arg-type] # which the library documents, and its annotation leaves out
        )
        self._redis_error = RedisError
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._windows = MovingWindowRateLimiter(self._storage)
        self._redis = Redis(connection_pool=pool)
        self._acquire = self._redis.register_script(_ACQUIRE)
        self._renew = self._redis.register_script(_RENEW)
        self._lease_ms = round(lease_seconds * 1000)
        self._held: dict[str, set[str]] = {}
        self._releases: set[asyncio.Task[None]] = set()
        self._up = True

    @property
    def up(self) -> bool:
        return self._up

    # --- requests and pictures per minute -----------------------------------------------------------------------------

    async def hit(self, key: str, limit: int, cost: int) -> bool:
        """Whether ``cost`` more fit, and so are counted. Raises ``Unavailable``."""
        return await self._ask(lambda: self._windows.hit(_per_minute(limit), key, cost=cost))

    async def stats(self, key: str, limit: int) -> tuple[float, int]:
        """Unix time at which the window moves on, and how many are left. Raises ``Unavailable``."""
        return await self._ask(lambda: self._windows.get_window_stats(_per_minute(limit), key))

    async def free_at(self, key: str, limit: int, cost: int) -> float:
        """Unix time at which ``cost`` more will fit. Raises ``Unavailable``."""
        item = _per_minute(limit)
        name = self._storage.bridge.prefixed_key(item.key_for(key))
        # Newest first: the entry that has to leave the window before ``cost`` more fit.
        entry = await self._ask(lambda: self._redis.lindex(name, limit - cost))
        return time.time() if entry is None else float(entry) + item.get_expiry()

    # --- requests at a time -------------------------------------------------------------------------------------------

    async def acquire(self, key: str, limit: int) -> str:
        """A lease; empty if there are as many as ``limit``. While Redis is away everybody gets one, and Redis is told
        when it is back."""
        lease = secrets.token_hex(8)
        self._held.setdefault(key, set()).add(lease)  # before Redis has it: whatever happens meanwhile, it is released
        granted = False
        try:
            granted = await self._ask_for(key, limit, lease)
        finally:
            if not granted:
                self._forget(key, lease)
                self._release_later(key, lease)
        return lease if granted else ""

    async def _ask_for(self, key: str, limit: int, lease: str) -> bool:
        if not self._up:
            return True
        try:
            arguments: list[str | int] = [self._lease_ms, limit, lease]
            return bool(await self._ask(lambda: self._acquire(keys=[_leases(key)], args=arguments)))
        except Unavailable:
            return True

    async def release(self, key: str, lease: str) -> None:
        """Waits until Redis knows, a second at most. A cancelled caller need not wait: it is done all the same."""
        self._forget(key, lease)
        await asyncio.shield(self._release_later(key, lease))

    def _forget(self, key: str, lease: str) -> None:
        held = self._held[key]
        held.discard(lease)
        if not held:
            del self._held[key]

    def _release_later(self, key: str, lease: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._release(key, lease), name="release lease")
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)
        return task

    async def _release(self, key: str, lease: str) -> None:
        if not self._up:
            return  # it expires
        with suppress(Unavailable):
            await self._ask(lambda: self._redis.zrem(_leases(key), lease))

    # --- Redis's comings and goings -----------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Renew leases, and look for a Redis that went, for ever."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(self._lease_ms / 3000 if self._up else PROBE_SECONDS)
        finally:
            await self.close()

    async def look(self) -> None:
        """Renew every lease held here, also those that began while Redis was away. If that works, Redis is back."""
        held = {key: tuple(leases) for key, leases in self._held.items()}
        try:
            # A name of its own shows that Redis takes writes even where nothing is held.
            await self._try(lambda: self._renew_all({"": ("probe",), **held}))
        except Unavailable:
            return
        if not self._up:
            self._up = True
            log.warning("%s is back: limits hold over all gateways again", self.where)

    async def settle(self) -> None:
        """Until Redis knows of every lease given back so far."""
        await asyncio.gather(*self._releases)

    async def close(self) -> None:
        await self.settle()
        await self._redis.aclose()

    async def _renew_all(self, held: Mapping[str, Iterable[str]]) -> None:
        for key, leases in held.items():
            await self._renew(keys=[_leases(key)], args=[self._lease_ms, *leases])

    async def _ask(self, question: Callable[[], Awaitable[Answer]]) -> Answer:
        async with self._turns:
            if not self._up:
                raise Unavailable
            return await self._try(question)

    async def _try(self, question: Callable[[], Awaitable[Answer]]) -> Answer:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await question()
        except (self._redis_error, OSError, TimeoutError) as error:
            if self._up:
                self._up = False
                why = str(error) or type(error).__name__
                log.warning(
                    "%s does not answer (%s): each gateway counts its own requests until it is back", self.where, why
                )
            raise Unavailable from error


@lru_cache(maxsize=1024)
def _per_minute(limit: int) -> RateLimitItemPerMinute:
    from limits import RateLimitItemPerMinute

    return RateLimitItemPerMinute(limit)


def _leases(key: str) -> str:
    return f"{PREFIX}:leases:{key}"

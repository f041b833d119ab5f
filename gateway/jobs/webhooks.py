"""Tells the webhooks of jobs and batches how they ended, signed as the Standard Webhooks specification has it.

A delivery is tried until it is answered with 2xx, ever less often, for a day. The database remembers it, so a restart
loses none; a receiver may get one twice, and knows it by its ``webhook-id``. A host gets a few at a time: thousands for
one that does not answer keep nobody else's waiting.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime
from functools import cached_property
from typing import NoReturn

import httpx
from standardwebhooks import Webhook

from gateway.addresses import AddressRules, UrlRefused, direct_transport, parse_url, request_to
from gateway.database.deliveries import Deliveries, Delivery, Places
from gateway.database.errors import DatabaseError
from gateway.jobs.bell import Bell

DELAYS = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 3 * 3600.0, 6 * 3600.0, 9 * 3600.0)
"""Seconds after each failed try but the last."""
TRY_SECONDS = 15.0
HOLD_SECONDS = 60.0
"""Longer than a try: whoever took a delivery and has not settled it by then has died."""
AT_ONCE = 64
PER_HOST = 4
ROUND_SECONDS = 1.0
TIMEOUTS = httpx.Timeout(10.0, connect=5.0)
GONE = 410
"""The receiver wants no more of them."""

log = logging.getLogger(__name__)


class Undelivered(Exception):
    """What came in the way; ``for_good`` if trying again makes no sense."""

    def __init__(self, why: str, *, for_good: bool = False) -> None:
        super().__init__(why)
        self.for_good = for_good


class Webhooks:
    def __init__(
        self,
        deliveries: Deliveries,
        secret: str,
        rules: AddressRules,
        clock: Callable[[], float] = time.time,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._deliveries = deliveries
        self._signer = Webhook(secret)
        self._rules = rules
        self._clock = clock
        self._given = transport
        self._under_way: Counter[str] = Counter()
        """By host."""
        self._bell = Bell()

    @cached_property
    def _transport(self) -> httpx.AsyncBaseTransport:
        return self._given or direct_transport()

    async def check(self, url: str) -> None:
        """Whether it may be called at all. Raises ``UrlRefused``."""
        try:
            async with asyncio.timeout(TRY_SECONDS):
                await self._rules.addresses(parse_url(url))
        except (OSError, UnicodeError):  # a time-out is an OSError
            raise UrlRefused("names a host that cannot be found") from None

    async def run(self) -> NoReturn:
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    self._bell.still()
                    try:
                        await self.begin_due(tasks)
                    except DatabaseError as error:
                        log.debug("webhooks: %s", error)  # the database has said so itself
                    await self._bell.wait(ROUND_SECONDS)
        finally:
            if "_transport" in self.__dict__:
                await self._transport.aclose()

    async def begin_due(self, tasks: asyncio.TaskGroup) -> int:
        """Try those whose time has come, as far as their hosts have places; returns how many. Raises
        ``DatabaseError``."""
        places = Places(AT_ONCE - self._under_way.total(), PER_HOST, +self._under_way)
        if not places.free:
            return 0
        due = await self._deliveries.take(self._clock(), HOLD_SECONDS, places)
        for delivery in due:
            self._under_way[delivery.host] += 1
            task = tasks.create_task(self._deliver(delivery), name=f"webhook {delivery.id}")
            task.add_done_callback(lambda _, host=delivery.host: self._over(host))  # type: ignore[misc]
        return len(due)

    def _over(self, host: str) -> None:
        self._under_way[host] -= 1
        self._under_way = +self._under_way  # without hosts that have none
        self._bell.ring()

    async def _deliver(self, delivery: Delivery) -> None:
        next_at = None
        try:
            async with asyncio.timeout(TRY_SECONDS):
                await self._send(delivery)
        except (TimeoutError, Undelivered, UrlRefused, httpx.TransportError, OSError, UnicodeError) as error:
            why = str(error) or type(error).__name__
            if delivery.tries <= len(DELAYS) and not (isinstance(error, Undelivered) and error.for_good):
                delay = DELAYS[delivery.tries - 1]
                next_at = self._clock() + delay
                log.info("webhook %s of %s: %s; again in %g s", delivery.id, delivery.subject, why, delay)
            else:
                log.warning("webhook %s of %s is given up: %s", delivery.id, delivery.subject, why)
        try:
            await self._deliveries.settle(delivery, next_at)
        except DatabaseError as error:
            log.warning("webhook %s of %s is sent once more: %s", delivery.id, delivery.subject, error)

    async def _send(self, delivery: Delivery) -> None:
        url = parse_url(delivery.url)
        addresses = await self._rules.addresses(url)  # again: where the name leads may have changed
        for address in addresses[:-1]:
            try:
                return await self._post(delivery, url, address)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await self._post(delivery, url, addresses[-1])

    async def _post(self, delivery: Delivery, url: httpx.URL, address: str) -> None:
        at = datetime.fromtimestamp(int(self._clock()), UTC)
        headers = {
            "content-type": "application/json",
            "user-agent": "DisagFusion",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": self._signer.sign(delivery.id, at, delivery.payload),
        }
        request = request_to(address, "POST", url, headers, TIMEOUTS, delivery.payload.encode())
        async with aclosing(await self._transport.handle_async_request(request)) as response:
            if not response.is_success:  # a redirect neither: it would have to be checked, and signed for another
                status = response.status_code
                raise Undelivered(f"answered with status {status}", for_good=status == GONE)

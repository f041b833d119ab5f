"""Webhooks: signed, tried again ever less often, and never to an address that is not public."""

from __future__ import annotations

import asyncio
import base64
import json

import httpx
import pytest
import standardwebhooks.webhooks
from standardwebhooks import Webhook

from gateway.addresses import AddressRules, UrlRefused
from gateway.database.deliveries import Deliveries, Places
from gateway.database.jobs import Ending, Jobs, JobStatus
from gateway.jobs.endings import event_of
from gateway.jobs.webhooks import DELAYS, PER_HOST, Webhooks

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
URL = "https://hooks.example.org/jobs?x=1"


class Receiver:
    """Answers with the statuses it is given, in turn, and then with 204."""

    def __init__(self, *statuses: int | Exception) -> None:
        self.statuses = list(statuses)
        self.got: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.got.append(request)
        answer = self.statuses.pop(0) if self.statuses else 204
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer, headers={"location": "https://elsewhere.example.org"})


@pytest.fixture
def hooks(database, clock):
    """Makes what delivers to a receiver; a name leads to the addresses it is given."""

    def make(receiver: Receiver, *addresses: str, allow_private: bool = False) -> Webhooks:
        async def resolve(host: str, port: int) -> list[str]:
            return list(addresses or ("93.184.216.34",))

        rules = AddressRules((80, 443), allow_private, resolve)
        return Webhooks(Deliveries(database), SECRET, rules, clock, httpx.MockTransport(receiver))

    return make


@pytest.fixture
async def ended(database, job, clock):
    """A job that has ended, and whose webhook has yet to be told."""
    jobs = Jobs(database)
    await jobs.add([job("job_1", webhook_url=URL)])
    event = event_of("job_1", "image.job.completed", URL, clock.now)
    assert await jobs.finish("job_1", Ending(JobStatus.COMPLETED, clock.now, None, event=event))
    return event


async def deliver_due(webhooks: Webhooks) -> int:
    async with asyncio.TaskGroup() as tasks:
        return await webhooks.begin_due(tasks)


async def test_what_is_sent(ended, hooks, clock, monkeypatch):
    receiver = Receiver()
    assert await deliver_due(hooks(receiver)) == 1
    (request,) = receiver.got
    assert (request.method, request.url.host, request.url.raw_path) == ("POST", "93.184.216.34", b"/jobs?x=1")
    assert (request.headers["host"], request.extensions["sni_hostname"]) == ("hooks.example.org", "hooks.example.org")
    assert request.headers["webhook-id"] == ended.id

    class Now(standardwebhooks.webhooks.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(clock.now, tz)

    monkeypatch.setattr(standardwebhooks.webhooks, "datetime", Now)
    event = Webhook(SECRET).verify(request.content, dict(request.headers))
    assert event == {
        "id": ended.id,
        "object": "event",
        "type": "image.job.completed",
        "created_at": int(clock.now),
        "data": {"id": "job_1"},
    }
    assert await deliver_due(hooks(receiver)) == 0


@pytest.mark.parametrize("failure", [500, 302, 404, httpx.ConnectError("no"), httpx.ReadTimeout("slow")])
async def test_what_fails_is_tried_again(ended, hooks, clock, failure):
    receiver = Receiver(failure, failure)
    assert await deliver_due(hooks(receiver)) == 1
    for delay in DELAYS[:2]:
        clock.now += delay - 0.1
        assert await deliver_due(hooks(receiver)) == 0, "not yet"
        clock.now += 0.1
        assert await deliver_due(hooks(receiver)) == 1, "by another gateway, or after a restart, as well"
    clock.now += 1e6
    assert await deliver_due(hooks(receiver)) == 0
    assert {request.headers["webhook-id"] for request in receiver.got} == {ended.id}
    assert len({request.headers["webhook-timestamp"] for request in receiver.got}) == 3
    assert json.loads(receiver.got[0].content) == json.loads(receiver.got[2].content)


async def test_in_the_end_it_is_given_up(ended, hooks, clock, caplog):
    receiver = Receiver(*[500] * 99)
    for _ in range(99):
        await deliver_due(hooks(receiver))
        clock.now += 1e6
    assert len(receiver.got) == 1 + len(DELAYS)
    assert "given up" in caplog.text


async def test_a_receiver_that_is_gone_is_left_alone(ended, hooks, clock):
    receiver = Receiver(410)
    await deliver_due(hooks(receiver))
    clock.now += 1e6
    assert await deliver_due(hooks(receiver)) == 0


async def test_a_delivery_whose_gateway_died_is_made_by_another(ended, hooks, clock, database):
    assert len(await Deliveries(database).take(clock.now, 60, Places(9, 9, {}))) == 1
    receiver = Receiver()
    assert await deliver_due(hooks(receiver)) == 0
    clock.now += 60
    assert await deliver_due(hooks(receiver)) == 1


class Sluggish(httpx.AsyncBaseTransport):
    """Answers, but for one host, which keeps every caller waiting until it is told to answer."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.answers = asyncio.Event()
        self.waiting, self.at_most = 0, 0
        self.answered: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.headers["host"] == self.host:
            self.waiting += 1
            self.at_most = max(self.at_most, self.waiting)
            await self.answers.wait()
            self.waiting -= 1
        self.answered.append(request.headers["host"])
        return httpx.Response(204)


async def test_many_for_a_host_that_hangs_keep_nobody_elses_waiting(database, job, clock):
    jobs, transport = Jobs(database), Sluggish("dead.example.org")

    async def resolve(host: str, port: int) -> list[str]:
        return ["93.184.216.34"]

    webhooks = Webhooks(Deliveries(database), SECRET, AddressRules((443,), False, resolve), clock, transport)
    urls = [f"https://dead.example.org/{number}" for number in range(60)]
    urls += [f"https://host-{number % 7}.example.org" for number in range(40)]  # behind all of them
    await jobs.add([job(f"job_{number}") for number in range(len(urls))])
    for number, url in enumerate(urls):
        event = event_of(f"job_{number}", "image.job.completed", url, clock.now + number / 1000)
        await jobs.finish(f"job_{number}", Ending(JobStatus.COMPLETED, clock.now, None, event=event))
    clock.now += 1
    async with asyncio.TaskGroup() as tasks:
        while len(transport.answered) < 40:
            await webhooks.begin_due(tasks)
        assert "dead.example.org" not in transport.answered
        assert transport.at_most == PER_HOST
        transport.answers.set()
        while len(transport.answered) < 100:
            await webhooks.begin_due(tasks)
    assert transport.at_most <= PER_HOST
    assert transport.answered.count("dead.example.org") == 60


async def test_a_name_that_leads_elsewhere_by_now_is_not_called(ended, hooks):
    receiver = Receiver()
    await deliver_due(hooks(receiver, "127.0.0.1"))
    assert receiver.got == []


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://example.org", "http://"),
        ("https://user:pass@example.org", "user name"),
        ("https://example.org:8443", "port"),
        ("/path", "http://"),
        ("https://", "no host"),
        ("https://example.org/" + "x" * 9000, "characters"),
    ],
)
async def test_urls_that_are_never_called(hooks, url, why):
    with pytest.raises(UrlRefused, match=why):
        await hooks(Receiver()).check(url)


@pytest.mark.parametrize("address", ["10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1"])
async def test_private_addresses_have_to_be_allowed(hooks, address):
    with pytest.raises(UrlRefused, match="public"):
        await hooks(Receiver(), address).check(URL)
    await hooks(Receiver(), address, allow_private=True).check(URL)

"""The control socket with real peers: good ones, silent ones, and those that speak nonsense."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
import zmq
import zmq.asyncio

from gateway.stages.liveness import Heard, Joined, Lost, PoolRules, Roster
from gateway.stages.pool import HOLD_SECONDS, MOST_HELD, StagePool
from gateway.stages.sockets import BindError, Incoming, Sockets
from tests.curve import generate_keys
from wire.control_codec import MAX_CONTROL_BYTES, decode_to_stage, encode
from wire.security import CurveKeys
from wire.to_gateway import Goodbye, Grant, Heartbeat
from wire.to_stage import AssignRoles, Cancel, HeartbeatAck, Refused, Release, SayHello, Welcome
from wire.types import Epoch, Handle, Role, ServerId

A = ServerId("a/1")
GRANT = Grant(limits={Role.DIT: 3})
RELEASE = Release(handles=(Handle("h"),))
PATIENCE = 60.0


class Pool:
    """A running stage pool, what it reports, and peers to connect to it."""

    def __init__(self, liveness: float = 30.0, keys: CurveKeys | None = None, allowed: dict[str, str] | None = None):
        self.sockets = Sockets(keys=keys, allowed=allowed)
        router = self.sockets.router("tcp://127.0.0.1:*", "control", MAX_CONTROL_BYTES)
        rules = PoolRules("g1", liveness / 5, liveness, keys=allowed)
        self.reports: asyncio.Queue = asyncio.Queue()
        self.pool = StagePool(router, Roster(rules), self.reports.put_nowait)
        self.context = zmq.asyncio.Context()
        self.tasks = [
            asyncio.create_task(self.pool.run()),
            asyncio.create_task(self.sockets.authenticate()),
        ]

    def peer(
        self, identity: str | bytes = A, keys: CurveKeys | None = None, server_key: str = ""
    ) -> zmq.asyncio.Socket:
        dealer = self.context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, identity.encode() if isinstance(identity, str) else identity)
        dealer.setsockopt(zmq.LINGER, 0)
        if keys is not None:
            dealer.curve_serverkey, dealer.curve_publickey = server_key.encode(), keys.public.encode()
            dealer.curve_secretkey = keys.secret.encode()
        dealer.connect(self.pool.endpoint)
        return dealer

    async def report(self):
        async with asyncio.timeout(PATIENCE):
            return await self.reports.get()

    async def close(self) -> None:
        assert not self.tasks[0].done(), self.tasks[0]
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)
        self.context.destroy(linger=0)
        self.sockets.close()


@pytest.fixture
async def start():
    pools = []

    def open_pool(**options) -> Pool:
        pools.append(Pool(**options))
        return pools[-1]

    yield open_pool
    for pool in pools:
        await pool.close()


@pytest.fixture
async def pool(start) -> Pool:
    return start()


async def hear(dealer):
    async with asyncio.timeout(PATIENCE):
        return decode_to_stage((await dealer.recv_multipart())[-1])


async def join(pool, hello, server=A, **changes):
    name, incarnation = server.split("/")
    dealer = pool.peer(server)
    await dealer.send(encode(hello(name, incarnation, **changes)))
    assert isinstance(await hear(dealer), Welcome)
    assert isinstance(await pool.report(), Joined)
    return dealer


async def test_messages_go_both_ways(pool, hello):
    dealer = await join(pool, hello)
    await dealer.send(encode(GRANT))
    assert await pool.report() == Heard(A, GRANT)
    pool.pool.send(A, Cancel(epochs=()))
    assert await hear(dealer) == Cancel(epochs=())
    await dealer.send(encode(Heartbeat(sequence=3)))
    assert await hear(dealer) == HeartbeatAck(sequence=3)


async def test_an_order_of_roles_brings_what_crosses_between_the_stages(pool, hello):
    dealer = await join(pool, hello, forms={Role.ENCODER: b"e"})
    order = AssignRoles(epoch=Epoch("g1", 1), roles=(Role.DIT,))
    pool.pool.send(A, order)
    assert await hear(dealer) == msgspec.structs.replace(order, forms={Role.ENCODER: b"e"})


class GoneBefore:
    """A router whose peer introduced itself, and had gone when it was read."""

    endpoint = "tcp://127.0.0.1:1"

    def __init__(self, hello: bytes) -> None:
        self._left = [Incoming(A.encode(), (hello,), "")]

    async def receive_all(self) -> list[Incoming]:
        if not self._left:
            await asyncio.Event().wait()
        return [self._left.pop()]

    def send(self, peer: bytes, frames: list[bytes]) -> bool:
        return False

    async def disconnection(self) -> None:
        await asyncio.Event().wait()


async def test_who_has_gone_before_the_welcome_does_not_join(hello):
    """Or it would stay for ever: nobody watches over a server that is lost, and work would wait for it."""
    reports = []
    pool = StagePool(GoneBefore(encode(hello("a", "1"))), Roster(PoolRules("g1", 6, 30)), reports.append)
    running = asyncio.create_task(pool.run())
    async with asyncio.timeout(PATIENCE):
        while not reports:  # noqa: ASYNC110 # as soon as the message is read
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    assert [type(report) for report in reports] == [Lost]


async def test_a_release_goes_with_what_is_said_next(pool, hello):
    dealer = await join(pool, hello, joins=True)
    pool.pool.send(A, RELEASE)
    pool.pool.send(A, Cancel(epochs=()))
    async with asyncio.timeout(PATIENCE):
        frames = await dealer.recv_multipart()
    assert [decode_to_stage(frame) for frame in frames] == [RELEASE, Cancel(epochs=())]


async def test_a_release_waits_for_nothing_else_for_long(pool, hello):
    dealer = await join(pool, hello, joins=True)
    pool.pool.send(A, RELEASE)
    assert await hear(dealer) == RELEASE


async def test_many_releases_do_not_wait(pool, hello):
    dealer = await join(pool, hello, joins=True)
    for _ in range(MOST_HELD):
        pool.pool.send(A, RELEASE)
    async with asyncio.timeout(PATIENCE):
        assert len(await dealer.recv_multipart()) == MOST_HELD


async def test_a_server_that_reads_one_at_a_time_gets_one_at_a_time(pool, hello):
    dealer = await join(pool, hello)
    pool.pool.send(A, RELEASE)
    pool.pool.send(A, Cancel(epochs=()))
    async with asyncio.timeout(PATIENCE):
        assert [len(await dealer.recv_multipart()) for _ in range(2)] == [1, 1]


async def test_nothing_is_kept_back_for_longer_than_there_are_sockets(hello):
    pool = Pool()
    await join(pool, hello, joins=True)
    faults = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: faults.append(context))
    pool.pool.send(A, RELEASE)
    await pool.close()
    later = loop.create_future()
    loop.call_later(2 * HOLD_SECONDS, later.set_result, None)  # all that was due in between has happened by then
    await later
    assert not faults


async def test_what_was_kept_back_for_a_lost_server_is_dropped(pool, hello):
    dealer = await join(pool, hello, joins=True)
    pool.pool.send(A, RELEASE)
    await dealer.send(encode(Goodbye()))
    assert await pool.report() == Lost(A, "it left", clean=True)
    again = await join(pool, hello, ServerId("a/2"), joins=True)
    pool.pool.send(ServerId("a/2"), Cancel(epochs=()))
    assert await hear(again) == Cancel(epochs=())


async def test_messages_may_come_as_the_frames_of_one(pool, hello):
    dealer = await join(pool, hello)
    await dealer.send_multipart([encode(GRANT), b"\xc1 nonsense", encode(Heartbeat(sequence=4))])
    assert [await hear(dealer), await hear(dealer)] == [SayHello(), HeartbeatAck(sequence=4)]
    assert await pool.report() == Heard(A, GRANT)
    assert pool.pool.malformed == 1


@pytest.mark.parametrize("frames", [[b"\xc1 nonsense"], [b""], [b"\xc1" * 5000], [encode(Heartbeat(sequence=1))[:-1]]])
async def test_nonsense_is_counted_and_answered_with_say_hello(pool, hello, frames):
    dealer = pool.peer()
    await dealer.send_multipart(frames)
    assert await hear(dealer) == SayHello()
    assert pool.pool.malformed == 1
    await dealer.send(encode(hello()))
    assert isinstance(await hear(dealer), Welcome), "it may still behave"


async def test_an_identity_that_is_no_text_is_ignored(pool, hello):
    strange = pool.peer(b"\xff\xfe")
    await strange.send(encode(GRANT))
    dealer = await join(pool, hello)
    for sequence in range(1000):  # what the other sent may take longer
        if not pool.pool.malformed:
            await dealer.send(encode(Heartbeat(sequence=sequence)))
            await hear(dealer)
    assert pool.pool.malformed == 1


async def test_another_protocol_is_refused(pool, hello):
    dealer = pool.peer()
    await dealer.send(encode(hello(protocol=(2, 0))))
    refused = await hear(dealer)
    assert isinstance(refused, Refused)
    assert "2.0" in refused.message


async def test_a_connection_that_ends_is_a_loss_at_once(pool, hello):
    dealer = await join(pool, hello)
    await join(pool, hello, ServerId("b/1"))
    dealer.close()
    assert await pool.report() == Lost(A, "its connection ended")
    assert pool.pool.vitals().keys() == {"b/1"}


async def test_silence_is_a_loss(start, hello):
    pool = start(liveness=0.2)
    await join(pool, hello)
    assert await pool.report() == Lost(A, "silent for 0.2 s")


async def test_a_peer_may_come_back_under_its_identity(pool, hello):
    """As after a broken connection of which the gateway has not heard yet."""
    await join(pool, hello)
    second = await join(pool, hello)
    pool.pool.send(A, Cancel(epochs=()))
    assert await hear(second) == Cancel(epochs=())


async def test_a_message_to_a_peer_that_is_gone_is_a_loss(pool, hello):
    await join(pool, hello)
    pool.pool._router.send = lambda peer, frames: False
    pool.pool.send(A, Cancel(epochs=()))
    assert await pool.report() == Lost(A, "it cannot be reached, or does not read its messages")
    pool.pool.send(A, Cancel(epochs=()))
    assert pool.reports.empty()


async def test_with_keys_only_registered_servers_get_in(start, hello, caplog):
    ours, theirs, strange = (generate_keys() for _ in range(3))
    pool = start(keys=ours, allowed={"a": theirs.public})
    stranger = pool.peer(ServerId("b/1"), strange, ours.public)
    await stranger.send(encode(hello("b", public_key=strange.public)))
    async with asyncio.timeout(60):
        while not caplog.text:  # noqa: ASYNC110 # lines of a log are no events
            await asyncio.sleep(0.01)
    assert f"a connection from 127.0.0.1 was refused: its CURVE key {strange.public} is not registered" in caplog.text
    plain = pool.peer(ServerId("c/1"))
    await plain.send(encode(hello("c")))
    dealer = pool.peer(A, theirs, ours.public)
    await dealer.send(encode(hello(public_key=theirs.public)))
    assert isinstance(await hear(dealer), Welcome)
    assert (await pool.report()).server == A
    await dealer.send(encode(GRANT))
    assert await pool.report() == Heard(A, GRANT)
    assert pool.reports.empty()


async def test_all_the_servers_of_a_lost_gateway_may_connect_in_one_moment():
    """100, which is ZeroMQ's own number, has the others wait for a second and more."""
    sockets = Sockets()
    try:
        router = sockets.router("tcp://127.0.0.1:*", "control", MAX_CONTROL_BYTES)
        assert router._line.socket.getsockopt(zmq.BACKLOG) >= PoolRules("g", 2.0, 10.0).max_servers
    finally:
        sockets.close()


async def test_addresses_that_cannot_be_bound_are_named(pool):
    taken = pool.pool.endpoint
    with pytest.raises(BindError, match=f"control socket cannot be bound to {taken}: Address already in use"):
        pool.sockets.router(taken, "control", 100)
    with pytest.raises(BindError, match=r"data socket: tcp://0.0.0.0:1 can be reached from other machines"):
        pool.sockets.router("tcp://0.0.0.0:1", "data", 100)
    pool.sockets._allow_plaintext = True
    with pytest.raises(BindError, match="cannot be bound to tcp://nowhere:1: No such device"):
        pool.sockets.router("tcp://nowhere:1", "data", 100)

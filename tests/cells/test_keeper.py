"""Real gateways that ask each other over real sockets; their servers are sockets that do as a server would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from gateway.cells import keeper, rules
from gateway.settings import InvalidSettings, Settings
from gateway.shell.assembly import Gateway
from gateway.shell.ending import wind_down
from stage_server.data.holder import Holder
from tests.curve import generate_keys
from tests.databases import prepared
from tests.servers import free_port
from wire.control_codec import decode_to_gateway, decode_to_stage, encode
from wire.params import ModelInfo
from wire.to_gateway import AskCell, Goodbye, Hello, RoleInfo
from wire.to_stage import MoveTo, SayHello, ToStage, Welcome
from wire.types import REQUIRED
from wire.version import PROTOCOL

PATIENCE = 120.0
Start = Callable[..., Gateway]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "ASK_SECONDS", 0.05)
    monkeypatch.setattr(rules, "WAITS", dict.fromkeys(rules.Why, 0.0))


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    running: list[tuple[Gateway, asyncio.Task[None]]] = []

    def gateway(cell: str, port: int = 0, *peers: int, **settings: object) -> Gateway:
        given = {
            "cell": cell,
            "control_bind": f"tcp://127.0.0.1:{port or '*'}",
            "peers": tuple(f"tcp://127.0.0.1:{peer}" for peer in peers),
            "state_dir": prepared(tmp_path / cell),
        }
        made = Gateway(Settings(**given | settings))
        running.append((made, asyncio.create_task(made.run())))
        return made

    yield gateway
    for _, task in running:
        assert not task.done(), task
        task.cancel()
        await asyncio.wait([task])


class Server:
    """A stage server with all roles that goes where it is told."""

    def __init__(self, name: str) -> None:
        self._context = zmq.asyncio.Context()
        self._holder = Holder("tcp://127.0.0.1:*", lambda _: None, identity=f"{name}/1")
        self._hello = Hello(
            protocol=PROTOCOL,
            name=name,
            incarnation="1",
            model=ModelInfo(name="m", key="m@1", family="f", dtype="float32"),
            device_class="c",
            memory_bytes=1 << 30,
            capable={role: RoleInfo() for role in REQUIRED},
            roles=REQUIRED,
            data_endpoint=self._holder.endpoint,
            moves=True,
        )

    async def join(self, endpoint: str) -> None:
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, f"{self._hello.name}/1".encode())
        self._socket.connect(endpoint)
        await self._socket.send(encode(self._hello))
        await self.expect(Welcome)

    async def expect(self, kind: type) -> ToStage:
        async with asyncio.timeout(PATIENCE):
            while True:
                message = decode_to_stage((await self._socket.recv_multipart())[-1])
                if isinstance(message, kind):
                    return message

    async def follow(self) -> str:
        """Where it was sent."""
        order = await self.expect(MoveTo)
        await self._socket.send(encode(Goodbye()))
        self._socket.close(linger=1000)
        await self.join(order.endpoint)
        return order.endpoint

    def close(self) -> None:
        self._context.destroy(linger=0)
        self._holder.close()


@pytest.fixture
def server() -> AsyncIterator[Callable[[str], Server]]:
    made: list[Server] = []

    def make(name: str) -> Server:
        made.append(Server(name))
        return made[-1]

    yield make
    for each in made:
        each.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 # what is looked for is no event
            await asyncio.sleep(0.01)


async def test_a_gateway_without_servers_is_given_one_that_another_can_spare(start: Start, server) -> None:
    ports = free_port(), free_port()
    first, second = start("a", ports[0], *ports), start("b", ports[1], *ports)
    servers = [server("s1"), server("s2")]
    for each in servers:
        await each.join(first.pool.endpoint)
    moved = [asyncio.create_task(each.follow()) for each in servers]
    done, rest = await asyncio.wait(moved, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == [second.pool.endpoint]
    await until(lambda: first.dispatcher.ready() and second.dispatcher.ready())
    assert not next(iter(rest)).done(), "the other one stays"
    for task in rest:
        task.cancel()


async def test_at_its_end_a_gateway_hands_its_servers_over(start: Start, server) -> None:
    ports = free_port(), free_port()
    first, second = start("a", ports[0], *ports), start("b", ports[1], *ports)
    only = server("s1")
    await only.join(first.pool.endpoint)
    await until(lambda: first.cells.others())
    assert await asyncio.gather(only.follow(), ended(first)) == [second.pool.endpoint, True]
    await until(second.dispatcher.ready)
    assert second.door.refusal() is None
    assert first.door.refusal() is not None


async def test_a_lone_gateway_ends_at_once(start: Start, server) -> None:
    lone = start("a")
    await server("s1").join(lone.pool.endpoint)
    assert await ended(lone)


class Nothing:
    def take_no_more(self) -> None: ...


async def ended(gateway: Gateway) -> bool:
    """With time left."""
    return await wind_down(gateway.door, Nothing(), gateway.cells, PATIENCE) > 0


async def test_while_others_have_servers_one_without_refuses_work(start: Start, server) -> None:
    ports = free_port(), free_port()
    first, second = start("a", ports[0], *ports), start("b", ports[1], *ports)
    await server("s1").join(first.pool.endpoint)
    await until(lambda: second.door.refusal() is not None)
    assert first.door.refusal() is None


async def test_gateways_with_one_key_pair_let_each_other_in(start: Start) -> None:
    ports, keys, theirs = (free_port(), free_port()), generate_keys(), generate_keys()
    settings = {"curve_public_key": keys.public, "curve_secret_key": keys.secret}
    settings["curve_allowed_keys"] = {"gpu-1": theirs.public}
    first, second = (start(name, port, *ports, **settings) for name, port in zip("ab", ports, strict=True))
    await until(lambda: first.cells.others() and second.cells.others())


async def test_two_gateways_of_one_name_leave_each_other_out(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    ports = free_port(), free_port()
    first, _ = start("a", ports[0], *ports), start("a", ports[1], state_dir=None, metrics=False)
    await until(lambda: "it is named 'a' as well: set DISAGFUSION_CELL" in caplog.text)
    assert first.cells.others() == []


async def test_one_that_knows_nothing_of_cells_is_left_out(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as older:
        port = older.bind_to_random_port("tcp://127.0.0.1")
        first = start("a", 0, port)
        peer, frame = await older.recv_multipart()
        assert decode_to_gateway(frame) == AskCell(name="a")
        await older.send_multipart([peer, encode(SayHello())])
        await until(lambda: "it knows nothing of cells: an older version" in caplog.text)
        assert first.cells.others() == []


def test_peers_are_addresses() -> None:
    with pytest.raises(ValueError, match="is no address; write tcp://HOST:PORT, the control address of a gateway"):
        Settings(peers=("10.0.0.1",))


async def test_a_peer_that_cannot_be_one_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="DISAGFUSION_PEERS"):
        Gateway(Settings(peers=("tcp://a b:1",), control_bind="tcp://127.0.0.1:*", state_dir=prepared(tmp_path)))

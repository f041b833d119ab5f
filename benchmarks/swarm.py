"""Many emulated stage servers in one process: each has a control socket, heartbeats and a device of its own.

python -m benchmarks.swarm CONTROL[,CONTROL] PREFIX COUNT SECONDS

They speak the wire protocol as stage servers do, and are not their code: no threads, no output store, and nobody
fetches inputs. When its connection ends, each goes to the next of the gateways. All pictures are one and the same,
served by one data socket. Jobs take ``SECONDS``, a JSON object of role to seconds. For each line on stdin a line of
JSON comes back: figures since the line before (``Figures``).
"""

from __future__ import annotations

import json
import secrets
import sys
from dataclasses import asdict, dataclass
from heapq import heappop, heappush
from itertools import count
from time import perf_counter
from typing import Any

import zmq

from benchmarks.gateway_processes import PROFILE
from scheduler.sim.suite import PROFILES
from stage_server.data.holder import Holder
from stage_server.engine.base import IMAGE_PORT
from stage_server.engine.emulated import EmulatedEngine
from stage_server.engine.emulated_values import PROMPT_DIGEST, blank_outputs
from stage_server.engine.profile import load_profile
from wire.bundle import pack
from wire.control_codec import decode_to_stage, encode
from wire.params import ImageParams
from wire.to_gateway import (
    Fetched,
    Grant,
    Heartbeat,
    Hello,
    Output,
    PeerTried,
    StageCancelled,
    StageDone,
    Started,
    Timings,
    ToGateway,
)
from wire.to_stage import Cancel, HeartbeatAck, Member, Refused, Run, SayHello, ToStage, TryPeer, Welcome
from wire.types import REQUIRED, Epoch, Handle, Role
from wire.version import PROTOCOL

PREFETCHED = 1
NEXT = {Role.ENCODER: "dit", Role.DIT: "decoder", Role.DECODER: IMAGE_PORT}
HELLO_SECONDS = 5.0
OUTPUT_BYTES = 1 << 20
PARAMS = ImageParams(prompt="", width=1024, height=1024, num_inference_steps=1)


@dataclass
class Figures:
    servers: int = 0
    """Welcomed."""
    heartbeats: int = 0
    """Acknowledged."""
    late: int = 0
    """Of those: longer after they were due than heartbeats are apart."""
    worst: float = 0.0
    """Seconds from due to acknowledged, at most."""
    lost: int = 0
    """Times that the gateway had given a server up."""
    jobs: int = 0
    computed: float = 0.0
    """Device-seconds of the jobs that ended."""
    moved: int = 0
    """Welcomed by another gateway than the first."""
    moved_at: float = 0.0
    """When the last of them was, by the clock that all processes share."""


class Swarm:
    def __init__(self, controls: list[str], prefix: str, number: int, seconds: dict[Role, float]) -> None:
        self.controls = controls
        self.seconds = seconds
        self.figures = Figures()
        self._due: list[tuple[float, int, Server, Any]] = []
        self._numbers = count()
        path = PROFILES / f"{PROFILE}.toml"
        engine = EmulatedEngine(path)
        values = blank_outputs(load_profile(path), Role.DECODER, PARAMS, {PROMPT_DIGEST: ""})[IMAGE_PORT]
        picture = pack(values)
        self.picture_bytes = picture.nbytes
        names: list[str] = []
        self._holder = Holder("tcp://127.0.0.1:*", lambda _: picture, aliases=names)
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 8 * number + 100)
        self._poller = zmq.Poller()
        self._poller.register(sys.stdin.fileno(), zmq.POLLIN)
        self._servers: dict[object, Server] = {}
        self._monitors: dict[object, Server] = {}
        for index in range(number):
            hello = Hello(
                protocol=PROTOCOL,
                name=f"{prefix}{index}",
                incarnation=secrets.token_hex(8),
                model=engine.describe(),
                device_class=engine.device_class,
                memory_bytes=engine.memory_bytes,
                capable=engine.capable(),
                roles=REQUIRED,
                data_endpoint=self._holder.endpoint,
                pinned=True,
                engine="emulated",
                limits=dict.fromkeys(REQUIRED, 1 + PREFETCHED),
            )
            names.append(f"{hello.name}/{hello.incarnation}")
            Server(self, hello).dial()

    def open(self, server: Server, hello: Hello, control: str) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, f"{hello.name}/{hello.incarnation}".encode())
        if control != self.controls[-1]:
            monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            self._poller.register(monitor, zmq.POLLIN)
            self._monitors[monitor] = server
        socket.connect(control)
        self._poller.register(socket, zmq.POLLIN)
        self._servers[socket] = server
        return socket

    def close_socket(self, socket: zmq.Socket[bytes]) -> None:
        self._poller.unregister(socket)
        del self._servers[socket]
        socket.disable_monitor()
        socket.close(linger=0)

    def at(self, when: float, server: Server, what: Any) -> None:
        heappush(self._due, (when, next(self._numbers), server, what))

    def run(self) -> None:
        """Until stdin is closed."""
        while True:
            wait = max(0.0, self._due[0][0] - perf_counter()) if self._due else 1.0
            for source, _ in self._poller.poll(wait * 1e3):
                if source == sys.stdin.fileno():
                    if not sys.stdin.readline():
                        return
                    print(json.dumps(asdict(self.figures)), flush=True)
                    self.figures = Figures(servers=self.figures.servers)
                elif (server := self._monitors.pop(source, None)) is not None:
                    self._poller.unregister(source)
                    server.lost()
                elif (server := self._servers.get(source)) is not None:
                    server.drain()
            while self._due and self._due[0][0] <= perf_counter():
                when, _, server, what = heappop(self._due)
                server.due(when, what)

    def close(self) -> None:
        self._context.destroy(linger=0)
        self._holder.close()


class Server:
    """One device: jobs compute one after the other, in the order in which they came."""

    def __init__(self, swarm: Swarm, hello: Hello) -> None:
        self._swarm = swarm
        self._hello = hello
        self._gateway = 0
        """Index."""
        self._interval = 0.0
        """Of heartbeats; 0: not welcomed yet."""
        self._sequence = 0
        self._beats: dict[int, float] = {}
        """When those that were not acknowledged were due."""
        self._free_at = 0.0
        self._granted = dict.fromkeys(REQUIRED, 1 + PREFETCHED)
        self._here: dict[Epoch, Role] = {}
        self._is_moving = False

    def dial(self) -> None:
        self._socket = self._swarm.open(self, self._hello, self._swarm.controls[self._gateway])
        self._introduce()

    def lost(self) -> None:
        """To the next gateway, with nothing of the former one's."""
        self._swarm.close_socket(self._socket)
        self._gateway += 1
        self._is_moving = True
        self._interval = 0.0
        self._here.clear()
        self.dial()

    def drain(self) -> None:
        """All that has come."""
        while self._socket.get(zmq.EVENTS) & zmq.POLLIN:
            for frame in self._socket.recv_multipart():
                self._take(decode_to_stage(frame))

    def due(self, when: float, what: Any) -> None:
        match what:
            case None:
                if self._interval:  # otherwise it is on its way, and begins anew once it is welcomed
                    self._beat(when)
            case Hello() if not self._interval:
                self._introduce()
            case Started(epoch=epoch) if epoch in self._here:
                self._send(what)
            case Epoch() if what in self._here:
                self._end(what)

    def _take(self, message: ToStage) -> None:
        match message:
            case Welcome(heartbeat_seconds=seconds):
                if not self._interval:
                    self._joined()
                    self._swarm.at(perf_counter() + seconds * secrets.randbelow(1000) / 1000, self, None)
                self._interval = seconds
            case SayHello():
                self._swarm.figures.lost += bool(self._interval)
                self._send(self._hello)
            case HeartbeatAck(sequence=sequence):
                self._acknowledged(sequence)
            case Run() | Cancel():
                self._work(message)
            case TryPeer(server=server):
                self._send(PeerTried(server=server))
            case Refused(message=why):
                raise SystemExit(f"{self._hello.name} was refused: {why}")
            case _:
                pass  # pinned servers are not asked for other roles, and there is no store to release from

    def _joined(self) -> None:
        figures = self._swarm.figures
        if self._is_moving:
            figures.moved += 1
            figures.moved_at = perf_counter()
        else:
            figures.servers += 1

    def _work(self, message: Run | Cancel) -> None:
        if isinstance(message, Run):
            for member in message.members:
                self._begin(message.role, member)
            return
        for epoch in message.epochs:
            if self._here.pop(epoch, None) is not None:
                self._send(StageCancelled(epoch=epoch))

    def _introduce(self) -> None:
        """Again and again until it is welcomed: a gateway answers no more than so many in a second."""
        self._send(self._hello)
        self._swarm.at(perf_counter() + HELLO_SECONDS * (1 + secrets.randbelow(1000) / 1000), self, self._hello)

    def _beat(self, when: float) -> None:
        self._sequence += 1
        self._beats[self._sequence] = when
        self._send(Heartbeat(sequence=self._sequence))
        self._swarm.at(when + self._interval, self, None)

    def _acknowledged(self, sequence: int) -> None:
        took = perf_counter() - self._beats.pop(sequence, perf_counter())
        figures = self._swarm.figures
        figures.heartbeats += 1
        figures.late += took > self._interval
        figures.worst = max(figures.worst, took)

    def _begin(self, role: Role, member: Member) -> None:
        begins = max(perf_counter(), self._free_at)
        self._free_at = begins + self._swarm.seconds[role]
        self._here[member.epoch] = role
        self._send(Fetched(epoch=member.epoch))
        self._swarm.at(begins, self, Started(epoch=member.epoch))
        self._swarm.at(self._free_at, self, member.epoch)

    def _end(self, epoch: Epoch) -> None:
        role = self._here.pop(epoch)
        nbytes = self._swarm.picture_bytes if role is Role.DECODER else OUTPUT_BYTES
        output = Output(port=NEXT[role], handle=Handle(secrets.token_hex(16)), nbytes=nbytes)
        seconds = self._swarm.seconds[role]
        self._send(StageDone(epoch=epoch, outputs=(output,), timings=Timings(compute=seconds)))
        self._granted[role] += 1
        self._send(Grant(limits={role: self._granted[role]}))
        self._swarm.figures.jobs += 1
        self._swarm.figures.computed += seconds

    def _send(self, message: ToGateway) -> None:
        self._socket.send(encode(message))


def main() -> None:
    controls, prefix, number, seconds = sys.argv[1:]
    swarm = Swarm(
        controls.split(","), prefix, int(number), {Role(role): each for role, each in json.loads(seconds).items()}
    )
    try:
        swarm.run()
    finally:
        swarm.close()


if __name__ == "__main__":
    main()

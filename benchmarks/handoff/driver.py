"""Stands where the gateway does, as fast as it can: real stage servers as processes, and nobody who decides."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from time import perf_counter
from typing import TypeVar

import msgspec
import zmq

from benchmarks.ports import free_port
from wire.control_codec import decode_to_gateway, encode
from wire.params import ImageParams
from wire.to_gateway import Ask, Heartbeat, Hello, StageDone, StageFailed, ToGateway
from wire.to_stage import Fine, HeartbeatAck, InputRef, Member, Release, Run, ToStage, Welcome
from wire.types import Epoch, Role

START_SECONDS = 120.0
ANSWER_SECONDS = 120.0
JOB_SECONDS = 600.0
M = TypeVar("M", bound=msgspec.Struct)


class Driver:
    """A ROUTER to which stage servers say Hello; ``messages`` are those not asked for yet."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._router: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self.port = free_port()
        self._router.bind(f"tcp://127.0.0.1:{self.port}")
        self._peers: dict[str, bytes] = {}
        self._hellos: dict[str, Hello] = {}
        self._epochs = count(1)
        self._seen: list[tuple[float, ToGateway]] = []

    def close(self) -> None:
        self._context.destroy(linger=0)

    def joined(self, name: str) -> Hello:
        """The Hello of the server of this name. Raises ``TimeoutError``."""
        while name not in self._hellos:
            self._take(START_SECONDS)
        return self._hellos[name]

    def run(self, server: str, role: Role, params: ImageParams, *inputs: InputRef) -> Epoch:
        epoch = Epoch("driver", next(self._epochs))
        member = Member(epoch=epoch, params=params, inputs=inputs)
        self._send(server, Run(role=role, members=(member,), remaining_seconds=JOB_SECONDS))
        return epoch

    def expect(self, kind: type[M], epoch: Epoch) -> tuple[float, M]:
        """When the message of this kind about the attempt was here, on ``perf_counter``, and the message.

        Raises ``TimeoutError`` where nothing comes.
        """
        while True:
            for index, (when, message) in enumerate(self._seen):
                if getattr(message, "epoch", None) != epoch:
                    continue
                if isinstance(message, kind):
                    del self._seen[index]
                    return when, message
                assert not isinstance(message, StageFailed), message
            self._take(ANSWER_SECONDS)

    def inputs(self, server: str, done: StageDone, role: Role) -> tuple[InputRef, ...]:
        """Of what the attempt on ``server`` made, what ``role`` reads."""
        endpoint = self._hellos[server].data_endpoint
        ports = [output for output in done.outputs if output.port == role]
        return tuple(InputRef(handle=port.handle, endpoint=endpoint, nbytes=port.nbytes) for port in ports)

    def release(self, server: str, done: StageDone) -> None:
        self._send(server, Release(handles=tuple(output.handle for output in done.outputs)))

    def _send(self, server: str, message: ToStage) -> None:
        self._router.send_multipart([self._peers[server], encode(message)])

    def _take(self, seconds: float) -> None:
        if not self._router.poll(seconds * 1e3):
            raise TimeoutError(f"no stage server has said anything for {seconds:g} s")
        now = perf_counter()
        peer, frame = self._router.recv_multipart()
        message = decode_to_gateway(frame)
        match message:
            case Ask():
                self._router.send_multipart([peer, encode(Fine(gateway="driver"))])
            case Hello():
                self._peers[message.name] = peer
                welcome = Welcome(gateway="driver", heartbeat_seconds=5.0, liveness_seconds=600.0)
                self._router.send_multipart([peer, encode(welcome)])
                self._hellos[message.name] = message
            case Heartbeat(sequence=sequence):
                self._router.send_multipart([peer, encode(HeartbeatAck(sequence=sequence))])
            case _:
                self._seen.append((now, message))


@contextmanager
def servers(driver: Driver, options: dict[str, Sequence[str]]) -> Iterator[None]:
    """Stage servers by name, with their options, until the block ends; they are there when it begins."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for name, more in options.items():
            gateway = f"tcp://127.0.0.1:{driver.port}"
            command = [sys.executable, "-m", "stage_server", "--gateway", gateway, "--name", name, *more]
            processes.append(subprocess.Popen([*command, "--log-level", "warning"]))
        for name in options:
            driver.joined(name)
        yield
    finally:
        for _ in range(2):  # the second time they leave whatever is left
            for process in processes:
                process.terminate()
        for process in processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

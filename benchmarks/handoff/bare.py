"""The same exchanges in bare pyzmq, as well as they can be written: done → run, header, chunks. Nothing is computed.

Two processes and a router between them. The one upstream says that it is done; the router tells the one downstream to
run; that one asks for the header, then for all chunks at once, writes them to a buffer that it has, and says that it
starts. No checksums, no codec, one thread each; a chunk is sent from where it lies.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import zmq

from wire.transfer import CHUNK_BYTES

POLL_MS = 30_000


def hand_offs(nbytes: int) -> Iterator[float]:
    """Seconds from the router's hearing ``done`` to its hearing ``started``, for a payload of ``nbytes``, again and
    again."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    spawn = multiprocessing.get_context("spawn")
    ends = [spawn.Process(target=end, args=(port, nbytes), daemon=True) for end in (_upstream, _downstream)]
    try:
        for process in ends:
            process.start()
        peers = {}
        while len(peers) < 2:
            peer, name, *rest = _received(router)
            peers[name] = peer, rest
        endpoint = peers[b"up"][1][0]
        while True:
            router.send_multipart([peers[b"up"][0], b"go"])
            _received(router)
            began = perf_counter()
            router.send_multipart([peers[b"down"][0], endpoint])
            _received(router)
            yield perf_counter() - began
    finally:
        for process in ends:
            process.kill()
            process.join()
        context.destroy(linger=0)


@contextmanager
def _sockets(port: int) -> Iterator[tuple[zmq.Context[zmq.Socket[bytes]], zmq.Socket[bytes]]]:
    context = zmq.Context()
    control: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    control.connect(f"tcp://127.0.0.1:{port}")
    try:
        yield context, control
    finally:
        context.destroy(linger=0)


def _upstream(port: int, nbytes: int) -> None:
    payload = memoryview(bytearray(nbytes))
    with _sockets(port) as (context, control):
        holder = context.socket(zmq.ROUTER)
        data = holder.bind_to_random_port("tcp://127.0.0.1")
        control.send_multipart([b"up", f"tcp://127.0.0.1:{data}".encode()])
        poller = zmq.Poller()
        poller.register(control, zmq.POLLIN)
        poller.register(holder, zmq.POLLIN)
        while ready := dict(poller.poll(POLL_MS)):
            if control in ready:
                control.recv()
                control.send(b"done")
            if holder in ready:
                peer, question = holder.recv_multipart()
                if question == b"header":
                    holder.send_multipart([peer, str(nbytes).encode()])
                else:
                    first = int(question)
                    holder.send_multipart([peer, question, payload[first : first + CHUNK_BYTES]], copy=False)


def _downstream(port: int, nbytes: int) -> None:
    buffer = memoryview(bytearray(nbytes))
    with _sockets(port) as (context, control):
        control.send_multipart([b"down"])
        dealer: zmq.Socket[bytes] | None = None
        while control.poll(POLL_MS):
            endpoint = control.recv()
            if dealer is None:
                dealer = context.socket(zmq.DEALER)
                dealer.connect(endpoint.decode())
            dealer.send(b"header")
            starts = range(0, int(dealer.recv()), CHUNK_BYTES)
            for first in starts:
                dealer.send(str(first).encode())
            for _ in starts:
                offset, body = dealer.recv_multipart(copy=False)
                first = int(offset.bytes)
                buffer[first : first + len(body.buffer)] = body.buffer
            control.send(b"started")


def _received(router: zmq.Socket[bytes]) -> list[bytes]:
    if not router.poll(POLL_MS):
        raise TimeoutError("a bare process has said nothing for 30 s")
    return router.recv_multipart()

"""Messages of several frames to and from a socket that does not wait.

pyzmq's own functions for these check every part, and ask for an option after each frame: with small messages that
takes longer than ZeroMQ does.
"""

from __future__ import annotations

from collections.abc import Sequence

import zmq

from wire.control_codec import Buffer

NOBLOCK = int(zmq.NOBLOCK)
_SEND_MORE = NOBLOCK | int(zmq.SNDMORE)
"""As plain numbers: arithmetic with pyzmq's flags costs more than the calls that take them."""


def receive(socket: zmq.Socket[bytes]) -> list[zmq.Frame]:
    """Raises ``zmq.Again`` where nothing waits."""
    frames = [socket.recv(NOBLOCK, copy=False)]
    while frames[-1].more:
        frames.append(socket.recv(NOBLOCK, copy=False))
    return frames


def send(socket: zmq.Socket[bytes], frames: Sequence[Buffer], *, copy: bool = True) -> None:
    """Raises ``zmq.Again`` where too much waits already."""
    *others, last = frames
    for frame in others:
        socket.send(frame, _SEND_MORE, copy=copy)
    socket.send(last, NOBLOCK, copy=copy)

"""ZeroMQ contexts that run before they are needed."""

from __future__ import annotations

import zmq


def started(io_threads: int = 1) -> zmq.Context[zmq.Socket[bytes]]:
    """With its threads. They start with the first socket; where the process has no descriptors left for them by then,
    libzmq aborts it, while a socket that cannot be made is an error like others."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads)
    context.socket(zmq.PAIR).close()
    return context

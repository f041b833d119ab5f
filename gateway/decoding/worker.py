"""``python -m gateway.decoding.worker FD MAX_MEMORY``: decodes the pictures that come over a socket, one by one, until
the gateway closes it or dies."""

from __future__ import annotations

import socket
import sys

from gateway.decoding.frames import receive, send
from gateway.decoding.pictures import BadPicture, Decoding, decode

TOO_MUCH_MEMORY = "The picture takes more memory to decode than this server allows."

MAX_ASKED_BYTES = 1 << 32
"""The gateway has bounded them."""


def main() -> None:
    descriptor, max_memory = map(int, sys.argv[1:])
    if sys.platform == "linux":  # elsewhere the limit is taken and not kept
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (max_memory, max_memory))
    with socket.socket(fileno=descriptor) as gateway:
        try:
            while True:
                _one(gateway)
        except (EOFError, ConnectionError):
            pass  # the gateway has ended, or no longer wants this one


def _one(gateway: socket.socket) -> None:
    asked, (data,) = receive(gateway, MAX_ASKED_BYTES)
    try:
        picture = decode(data, Decoding(**asked))
    except BadPicture as error:
        cause = error.__cause__
        send(gateway, {"refused": str(error), "why": f"{type(cause).__name__}: {cause}"[:500] if cause else ""})
    except MemoryError:
        send(gateway, {"refused": TOO_MUCH_MEMORY, "why": ""})
    else:
        masks = () if picture.mask is None else (picture.mask,)
        send(gateway, {"size": picture.sent_size}, picture.png, *masks)


if __name__ == "__main__":
    main()

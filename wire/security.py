"""Keys, and the rule that sockets without them stay on this machine. The sockets themselves are elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

Allow = Callable[[str], bool]
"""Whether the owner of a CURVE public key (Z85) may connect."""

_Z85_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_LOOPBACK = re.compile(r"tcp://(127\.\d+\.\d+\.\d+|localhost|\[::1\]):|ipc://|inproc://")


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """One process's CURVE key pair, as Z85 text of 40 characters each. Raises ``ValueError``."""

    public: str
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        for name, key in (("public", self.public), ("secret", self.secret)):
            if not valid_key(key):
                raise ValueError(f"the {name} CURVE key is not 40 characters of Z85, as zmq.curve_keypair() makes it")


def valid_key(key: str) -> bool:
    return _Z85_KEY.fullmatch(key) is not None


def is_loopback(endpoint: str) -> bool:
    """Whether only processes of the same machine can reach it."""
    return _LOOPBACK.match(endpoint) is not None


def check_bind(endpoint: str, keys: CurveKeys | None, *, allow_plaintext: bool) -> None:
    """Raise ``ValueError`` where ``endpoint`` would offer an unencrypted socket to other machines."""
    if keys is None and not allow_plaintext and not is_loopback(endpoint):
        raise ValueError(
            f"{endpoint} can be reached from other machines and there are no CURVE keys: configure keys, bind a "
            "loopback address, or allow plaintext explicitly"
        )

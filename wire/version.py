"""Version of the protocol that this code speaks, on both planes."""

from __future__ import annotations

from wire.errors import ProtocolMismatch

PROTOCOL = (1, 5)
"""Major, minor. Another minor is compatible: unknown fields are skipped, missing ones have defaults."""


def check_protocol(peer: tuple[int, int]) -> None:
    """Raise ``ProtocolMismatch`` unless ``peer`` speaks our major version."""
    if peer[0] != PROTOCOL[0]:
        raise ProtocolMismatch(
            f"the peer speaks protocol {peer[0]}.{peer[1]}, this process {PROTOCOL[0]}.{PROTOCOL[1]}: "
            "the major versions must be equal; upgrade the older side"
        )

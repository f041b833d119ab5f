"""By which of its addresses each holder is reached from here: its own, or one behind a relay. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from wire.to_stage import InputRef, TryPeer
from wire.types import ServerId

MAX_KNOWN = 4096
"""Servers; those asked for longest ago are forgotten."""


class Paths:
    """What was found out. The direct address comes first wherever it works."""

    def __init__(self) -> None:
        self._known: OrderedDict[ServerId, str] = OrderedDict()

    def known(self, server: ServerId) -> str:
        """The address by which it was reached last; empty where that is not known."""
        if server in self._known:
            self._known.move_to_end(server)
        return self._known.get(server, "")

    def note(self, server: ServerId, endpoint: str) -> None:
        self._known[server] = endpoint
        self._known.move_to_end(server)
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def forget(self, server: ServerId) -> None:
        self._known.pop(server, None)


def holder_of(ref: InputRef) -> TryPeer:
    """To find a way to it."""
    return TryPeer(server=ref.server, endpoint=ref.endpoint, public_key=ref.public_key, relays=ref.relays)


def addresses(peer: TryPeer) -> Iterator[TryPeer]:
    """The same peer with one address each, in the order in which to try them."""
    for endpoint in (peer.endpoint, *peer.relays):
        yield TryPeer(server=peer.server, endpoint=endpoint, public_key=peer.public_key)

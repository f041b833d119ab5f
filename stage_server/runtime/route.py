"""Which of several gateways a server dials: each has its own order, so that servers spread without talking. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from xxhash import xxh3_64_intdigest


class Route:
    """``order`` is that of rendezvous hashing: without one of the gateways, only that one's servers go elsewhere."""

    def __init__(self, name: str, endpoints: Iterable[str]) -> None:
        """``name``: the server's; those of one process share it, and so stay together."""
        self.order = tuple(
            sorted(
                dict.fromkeys(endpoints),
                key=lambda endpoint: xxh3_64_intdigest(f"{name}\0{endpoint}".encode()),
                reverse=True,
            )
        )
        self.endpoint = self.order[0]
        """Where it is, or dials."""
        self._left = list(self.order[1:])

    @property
    def has_choice(self) -> bool:
        return len(self.order) > 1 or self.endpoint not in self.order

    def arrived(self) -> None:
        """There is a gateway at ``endpoint``: when it is lost, all the others come first."""
        self._left = [each for each in self.order if each != self.endpoint]

    def advance(self) -> bool:
        """To the next gateway. True where none is left that was not tried since there last was one."""
        is_over = not self._left
        if is_over:
            self._left = list(self.order)
        self.endpoint = self._left.pop(0)
        return is_over

    def go_to(self, endpoint: str) -> None:
        """Its gateway sends it there; if nobody is there, all of its own follow."""
        self.endpoint = endpoint
        self.arrived()

    def __str__(self) -> str:
        return ", ".join(self.order)

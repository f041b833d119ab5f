"""Outputs that wait for their readers, bounded in bytes.

Space is reserved before a job is committed, so a job that runs always finds room for what it makes. A role may fill
its share of the capacity, and must leave room for one largest output of every role held here that comes after it in
the pipeline: those are the jobs that empty the store, and without room they could never run.

Thread-safe by one lock: the compute thread publishes, the socket thread reads, the control thread releases.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from wire.bundle import Bundle
from wire.types import Handle, Role

HANDLE_BYTES = 16
DEFAULT_SHARES: Mapping[Role, float] = {
    Role.ENHANCER: 0.5,
    Role.ENCODER: 0.5,
    Role.DIT: 0.75,
    Role.DECODER: 1.0,
    Role.UPSCALER: 1.0,
}
"""Greatest part of the capacity that outputs of each role may fill."""

_ORDER = tuple(Role)


class OutputTooLarge(Exception):
    """More bytes than this store could ever hold for the role, or than were reserved."""


@dataclass(slots=True, eq=False)
class Reservation:
    """Space for the outputs of one job. Only the store changes it."""

    role: Role
    remaining: int


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """Bytes and counts at one moment."""

    capacity: int
    used: int
    """Published and reserved."""
    published: int
    by_role: Mapping[Role, int]
    outputs: int


@dataclass(slots=True)
class _Output:
    role: Role
    bundle: Bundle


@dataclass(slots=True)
class _Account:
    """What one role may use and does."""

    quota: int
    used: int = 0
    largest: int = 0
    """Bytes of its largest output; 0 while the role is not held here."""

    @property
    def kept_free(self) -> int:
        """Room that earlier roles must leave; none once it has an output of its own, which its reader will free."""
        return max(0, self.largest - self.used)


@dataclass(slots=True)
class _Books:
    """The sums, apart from the lock and the bundles."""

    capacity: int
    accounts: Mapping[Role, _Account]

    @property
    def used(self) -> int:
        return sum(account.used for account in self.accounts.values())

    def with_largest(self, largest: Mapping[Role, int]) -> _Books:
        accounts = {role: replace(old, largest=largest.get(role, 0)) for role, old in self.accounts.items()}
        return _Books(self.capacity, accounts)

    def downstream(self, role: Role) -> list[_Account]:
        return [self.accounts[later] for later in _ORDER[_ORDER.index(role) + 1 :]]

    def ceiling(self, role: Role) -> int:
        """Bytes that the role could reserve in an empty store."""
        kept = sum(account.largest for account in self.downstream(role))
        return min(self.accounts[role].quota, self.capacity - kept)

    def room(self, role: Role) -> int:
        """Bytes that the role can reserve now."""
        account = self.accounts[role]
        kept = sum(later.kept_free for later in self.downstream(role))
        return min(account.quota - account.used, self.capacity - self.used - kept)


class OutputStore:
    def __init__(
        self,
        capacity: int,
        *,
        shares: Mapping[Role, float] = DEFAULT_SHARES,
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        """``capacity`` in bytes. ``on_room`` is called after space was freed, on the thread that freed it, unlocked."""
        if capacity <= 0:
            raise ValueError(f"the output store's capacity is {capacity} bytes; it must be positive")
        self._lock = threading.Lock()
        self._on_room = on_room
        self._books = _Books(capacity, {role: _Account(int(capacity * shares[role])) for role in Role})
        self._outputs: dict[Handle, _Output] = {}
        self._open: set[Reservation] = set()

    def set_roles(self, largest: Mapping[Role, int]) -> None:
        """The roles held from now on, with the bytes of the largest output that a job of each can have.

        Raises ``OutputTooLarge`` and changes nothing where the store could not hold one of each next to the others.
        """
        with self._lock:
            books = self._books.with_largest(largest)
            for role, nbytes in largest.items():
                if nbytes > books.ceiling(role):
                    raise OutputTooLarge(
                        f"an output of {role} can have {nbytes} bytes; with roles {', '.join(largest)} an output store "
                        f"of {books.capacity} bytes has {books.ceiling(role)} for it"
                    )
            self._books = books
        self._on_room()

    def reserve(self, role: Role, nbytes: int) -> Reservation | None:
        """Space for a job's outputs, or None while there is no room.

        Raises ``OutputTooLarge`` where there never will be.
        """
        with self._lock:
            if nbytes > self._books.ceiling(role):
                raise OutputTooLarge(
                    f"an output of {nbytes} bytes; this store can hold at most {self._books.ceiling(role)} for {role}"
                )
            if nbytes > self._books.room(role):
                return None
            self._books.accounts[role].used += nbytes
            reservation = Reservation(role, nbytes)
            self._open.add(reservation)
            return reservation

    def publish(self, reservation: Reservation, bundle: Bundle) -> Handle:
        """Retain ``bundle`` within the reserved space until it is released; a job may publish several.

        Raises ``OutputTooLarge`` where the reservation does not suffice, ``ValueError`` where it is closed.
        """
        with self._lock:
            if reservation not in self._open:
                raise ValueError("the reservation is closed")
            if bundle.total_bytes > reservation.remaining:
                raise OutputTooLarge(
                    f"an output of {bundle.total_bytes} bytes; {reservation.remaining} are left of those reserved"
                )
            reservation.remaining -= bundle.total_bytes
            handle = Handle(secrets.token_hex(HANDLE_BYTES))
            self._outputs[handle] = _Output(reservation.role, bundle)
            return handle

    def close(self, reservation: Reservation) -> None:
        """Give back what was reserved and not used; closing twice is harmless."""
        with self._lock:
            if reservation not in self._open:
                return
            self._open.remove(reservation)
            self._books.accounts[reservation.role].used -= reservation.remaining
        self._on_room()

    def get(self, handle: Handle) -> Bundle | None:
        with self._lock:
            output = self._outputs.get(handle)
            return output.bundle if output else None

    def release(self, handles: Iterable[Handle]) -> int:
        """Drop these outputs; unknown handles are ignored. The bytes freed.

        A transfer in progress keeps its bundle's memory until it has been sent.
        """
        with self._lock:
            freed = sum(self._drop(handle) for handle in handles)
        if freed:
            self._on_room()
        return freed

    def handles(self) -> Collection[Handle]:
        with self._lock:
            return tuple(self._outputs)

    def statistics(self) -> StoreStatistics:
        with self._lock:
            return StoreStatistics(
                capacity=self._books.capacity,
                used=self._books.used,
                published=sum(output.bundle.total_bytes for output in self._outputs.values()),
                by_role={role: account.used for role, account in self._books.accounts.items()},
                outputs=len(self._outputs),
            )

    def _drop(self, handle: Handle) -> int:
        output = self._outputs.pop(handle, None)
        if output is None:
            return 0
        self._books.accounts[output.role].used -= output.bundle.total_bytes
        return output.bundle.total_bytes

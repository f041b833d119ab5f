"""Where jobs that run at once meet: each parks in a call, and when all have arrived, one of them computes for all.

Knows nothing of what is computed. There is no thread of its own that could die and leave others waiting: whoever finds
that everybody is here does the work. A job that pauses, fails, is cancelled or ends leaves, and those that wait find
that everybody who is left is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import Condition
from typing import Generic, TypeVar

Work = TypeVar("Work")
Back = Callable[[], None]
"""Says that whoever was away is waited for again."""


@dataclass(slots=True, eq=False)
class Call(Generic[Work]):
    """One call of one job. Compared by identity: its arguments may be tensors, which have no one truth value."""

    work: Work
    result: object = field(default=None, init=False)
    error: BaseException | None = field(default=None, init=False)
    company: int = field(default=1, init=False)
    """Calls that were computed in the same round, this one among them."""
    has_outcome: bool = field(default=False, init=False)
    is_over: bool = field(default=False, init=False)

    def succeed(self, result: object) -> None:
        self.result, self.has_outcome = result, True

    def fail(self, error: BaseException) -> None:
        self.error, self.has_outcome = error, True


class Rendezvous(Generic[Work]):
    """``compute`` gives every call of a round an outcome; it is never called twice at a time."""

    def __init__(self, compute: Callable[[Sequence[Call[Work]]], None]) -> None:
        self._compute = compute
        self._changed = Condition()
        self._present = 0
        self._parked: list[Call[Work]] = []

    @contextmanager
    def attended(self) -> Iterator[None]:
        """The caller takes part: until it leaves, the others wait for its calls."""
        with self._changed:
            self._present += 1
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def away(self) -> Iterator[Back]:
        """The caller, who takes part, is not waited for until this ends, or what it gives is called, on any thread.

        Those who are to go on together are called back before the first of them does, or it would begin a round alone.
        """
        is_back = False

        def back() -> None:
            nonlocal is_back
            with self._changed:
                self._present += not is_back
                is_back = True

        self._leave()
        try:
            yield back
        finally:
            back()

    def call(self, work: Work) -> Call[Work]:
        """Waits for all who take part, the caller among them. Raises what the call itself raised."""
        call = Call(work)
        with self._changed:
            self._parked.append(call)
            while not call.is_over and len(self._parked) < self._present:
                self._changed.wait()
            mine = [] if call.is_over else self._parked
            if mine:
                self._parked = []  # whoever is in it counts as under way, so nobody finds another round complete
        if mine:
            self._run(mine)
        if call.error is not None:
            raise call.error
        return call

    def _run(self, calls: list[Call[Work]]) -> None:
        for call in calls:
            call.company = len(calls)
        try:
            self._compute(calls)
            for call in calls:
                if not call.has_outcome:
                    call.fail(AssertionError("a round ended without an outcome of this call"))
        except BaseException as error:  # nobody may be left waiting, whatever it is
            for call in calls:
                if not call.has_outcome:
                    call.fail(error)
        finally:
            with self._changed:
                for call in calls:
                    call.is_over = True
                self._changed.notify_all()

    def _leave(self) -> None:
        with self._changed:
            self._present -= 1
            self._changed.notify_all()


def unattended() -> AbstractContextManager[Back]:
    """``Rendezvous.away`` of a job that takes part in none."""
    return nullcontext(lambda: None)

"""What must hold of everything that was asked, whatever was broken meanwhile. Pure: it judges records.

The same promises as in the simulation: no request lost, none answered twice or with another's picture, none left over.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from tests.chaos.record import Asked, Attempt, Downtimes, End

HONEST = frozenset(
    {
        (503, "server_is_overloaded"),
        (503, "storage_unavailable"),
        (503, "draining"),
        (503, "not_ready"),
        (504, "timeout"),
        (500, "server_error"),  # attempts used up; a traceback in a log is a complaint of its own
    }
)
"""What a service may say while parts of it are broken. None of them blames the client."""

WEAKENED = frozenset({"unavailable", "not-kept"})
"""``x-idempotency`` of answers that say themselves that they may come twice."""


KEEP_SECONDS = 10.0
"""That the end of a stream waits, at most, until it is kept."""


def complaints(
    asked: Sequence[Asked],
    downtimes: Downtimes,
    unkept: Collection[str] = (),
    killed: Sequence[tuple[int, float]] = (),
) -> list[str]:
    """``unkept``: requests whose answers were not kept, as the gateways' logs say. ``killed``: gateway, when."""

    def is_weak(each: Asked, answer: Attempt) -> bool:
        if answer.once in WEAKENED:
            return True
        # The headers of a stream go out before it is known, and its pictures before they are kept.
        was_killed = any(g == answer.gateway and 0 <= at - answer.ended <= KEEP_SECONDS for g, at in killed)
        return each.kind == "stream" and (answer.made_as in unkept or was_killed)

    return [
        *_about_each(asked, downtimes),
        *_about_names(asked),
        *(complaint for each in asked if each.key for complaint in _about_key(each, is_weak)),
    ]


def _about_each(asked: Iterable[Asked], downtimes: Downtimes) -> Iterator[str]:
    for each in asked:
        if not each.attempts or not each.is_over:
            yield f"{_name(each)} never ended"
        for attempt in each.attempts:
            yield from (f"{_name(each)}: {complaint}" for complaint in attempt.complaints)
            yield from (f"{_name(each)}: {complaint}" for complaint in _about_attempt(attempt, downtimes))


def _about_attempt(attempt: Attempt, downtimes: Downtimes) -> Iterator[str]:
    took = f"after {attempt.ended - attempt.began:.1f} s at gateway {attempt.gateway}"
    match attempt.end:
        case End.HUNG:
            yield f"hung: no answer {took}"
        case End.BROKEN | End.UNREACHED if not _was_down(attempt, downtimes):
            yield f"lost: {attempt.end} {took}, which was there all the time ({attempt.code})"
        case End.REFUSED if (attempt.status, attempt.code) not in HONEST:
            yield f"refused {took} with {attempt.status} {attempt.code}, which is not what is wrong"


def _was_down(attempt: Attempt, downtimes: Downtimes) -> bool:
    return any(began <= attempt.ended and attempt.began <= ended for began, ended in downtimes.get(attempt.gateway, []))


def _about_names(asked: Iterable[Asked]) -> Iterator[str]:
    """No answer is given to two requests."""
    owners: defaultdict[str, set[int]] = defaultdict(set)
    for each in asked:
        for attempt in each.attempts:
            if attempt.request_id:
                owners[attempt.request_id].add(each.number)
    for request_id, numbers in owners.items():
        if len(numbers) > 1:
            yield f"mixed up: requests {sorted(numbers)} all were {request_id}"


def _about_key(each: Asked, is_weak: Callable[[Asked, Attempt], bool]) -> Iterator[str]:
    """All answers for one key are one, unless one of them said that nobody could promise it."""
    answers = [attempt for attempt in each.attempts if attempt.end is End.ANSWERED and attempt.content]
    if len({attempt.content for attempt in answers}) > 1 and not any(is_weak(each, a) for a in answers):
        yield f"{_name(each)}: doubled: {len(answers)} answers for one Idempotency-Key differ"


def about_usage(
    asked: Iterable[Asked], recorded: Mapping[str, int], excused: Sequence[tuple[int, float, float]]
) -> list[str]:
    """Whatever was answered is recorded, once. ``recorded``: request id → records with status 200. ``excused``:
    gateway, since, until: it was killed when it had nowhere to write what it had answered."""

    def is_excused(attempt: Attempt) -> bool:
        return any(g == attempt.gateway and since <= attempt.ended <= until for g, since, until in excused)

    found = [f"{request_id} has {count} records of use" for request_id, count in recorded.items() if count > 1]
    for each in asked:
        for attempt in each.attempts if each.kind != "job" else ():  # recorded under the job's own name
            is_new = attempt.end is End.ANSWERED and attempt.once not in ("replayed", "joined")
            if is_new and attempt.request_id not in recorded and not is_excused(attempt):
                found.append(f"{_name(each)}: {attempt.request_id} was answered, and its use is not recorded")
    return found


def tally(asked: Iterable[Asked]) -> Counter[str]:
    """How requests ended, in words."""
    return Counter(_ending(each) for each in asked)


def _ending(each: Asked) -> str:
    if not each.attempts:
        return "never sent"
    last = each.last
    match last.end:
        case End.ANSWERED:
            return "answered" if len(each.attempts) == 1 else "answered, sent again"
        case End.REFUSED:
            return f"refused: {last.status} {last.code}"
        case End.BROKEN:
            return "lost with its gateway (no Idempotency-Key)"
        case _:
            return str(last.end)


def _name(each: Asked) -> str:
    return f"request {each.number} ({each.kind})"

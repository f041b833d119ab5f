"""A run in words and tables."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator

from tests.chaos.run import Outcome

MOST_COMPLAINTS = 50


def written(outcome: Outcome) -> str:
    return "\n".join(_lines(outcome)) + "\n"


def _lines(outcome: Outcome) -> Iterator[str]:
    done = sum(outcome.faults.values())
    yield "# Chaos"
    yield ""
    yield (
        "Written by a run. Real processes under load: gateways, a PostgreSQL, stage servers with emulated devices, a "
        "TCP proxy before every control and data port. What is broken, and in what order, follows from the seed; when, "
        "also from the machine."
    )
    yield ""
    yield "```text"
    yield (
        f"python -m tests.chaos --faults {done + sum(outcome.undone.values())} --seed {outcome.seed} "
        f"--gateways {outcome.gateways} --servers {outcome.servers} --rate {outcome.rate:g} --pace {outcome.pace:g}"
    )
    yield "```"
    yield ""
    yield from _table(
        ("", ""),
        [
            ("faults", f"{done:,}, and {sum(outcome.undone.values())} that found nothing to break or were refused"),
            ("requests", f"{outcome.requests:,}, {outcome.rate:g} a second"),
            ("pictures decoded and compared", f"{outcome.pictures_checked:,}"),
            ("attempts that were sent again", f"{outcome.sent_again:,}"),
            ("keys asked again at the end", f"{outcome.asked_again:,}"),
            ("longest wait", f"{max(outcome.longest.values(), default=0):.1f} s"),
            ("files that killed processes left for the hourly sweep", f"{outcome.orphans}"),
            ("whole and idle after the last fault", f"{outcome.settled_after:.1f} s"),
            ("duration", f"{outcome.seconds:.0f} s on {os.cpu_count()} cores; load {os.getloadavg()[2]:.1f} (15 min)"),
            ("complaints", f"{len(outcome.complaints)}"),
        ],
    )
    yield from _section("What was broken", ("fault", "times"), outcome.faults)
    yield from _section("How requests ended", ("end", "requests"), outcome.endings)
    yield from _section("What attempts met on the way", ("", "attempts"), outcome.attempts)
    yield "## Longest waits"
    yield ""
    rows = [(kind, f"{outcome.kinds[kind]:,}", f"{wait:.1f}") for kind, wait in sorted(outcome.longest.items())]
    yield from _table(("kind", "requests", "longest, s"), rows)
    yield "## Processes"
    yield ""
    yield from _table(("", "starts", "open files, before → after", "MiB, before → after"), _processes(outcome))
    yield from _invariants(outcome)


def _processes(outcome: Outcome) -> Iterator[tuple[str, ...]]:
    for name, starts in outcome.starts.items():
        (files, size), (now_files, now_size) = outcome.before[name], outcome.after[name]
        yield name, f"{starts}", f"{files} → {now_files}", f"{size >> 20} → {now_size >> 20}"


def _invariants(outcome: Outcome) -> Iterator[str]:
    yield "## Invariants"
    yield ""
    yield (
        "Checked: every request ends, within its deadline and the longest freeze, with the pictures asked for, whose "
        "pixels name its seed and prompt, or with an error that says what is wrong with the service. A connection "
        "breaks only if its gateway was killed, told to end, or had no descriptor left for it. No answer is "
        "given to two requests. All answers for an "
        "`Idempotency-Key` are one, unless they (of streams, the log) say that they were not kept. Jobs end. What was "
        "answered is in the records of use, once. No process ends by itself, and no log has a traceback. In the end no "
        "server has a job or an output, no store a file of a request, and no process many more files or much more "
        "memory than its like had at the beginning."
    )
    yield ""
    if not outcome.complaints:
        yield "All held."
        return
    yield f"{len(outcome.complaints)} did not hold:"
    yield ""
    for complaint in outcome.complaints[:MOST_COMPLAINTS]:
        yield f"- {complaint}"


def _section(title: str, heads: tuple[str, str], counts: Counter[str]) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    yield from _table(heads, [(what, f"{count:,}") for what, count in counts.most_common()])


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""

"""Faults under load, then peace, then the reckoning."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx
import psutil

from tests.chaos.faults import Strikes, plan
from tests.chaos.invariants import about_usage, complaints, tally
from tests.chaos.load import KINDS, Load
from tests.chaos.record import Asked, End
from tests.chaos.site import READY_SECONDS, Site, running

SETTLE_SECONDS = 180.0
WARM_UP = 3
"""Requests of each kind before the first fault."""
MORE_FILES = 160
MORE_BYTES = 80 << 20
"""That a process may have more at the end than one like it had at the beginning. A gateway keeps up to 64 connections
to data ports, of two descriptors each, and ten to the database; a stage server keeps some to its like."""
AGAIN = 200
"""Keys that are asked again at the end."""
TRACEBACK = "Traceback (most recent call last)"

Use = tuple[int, int]


@dataclass
class Outcome:
    """Of a run, for its report."""

    seed: int
    gateways: int
    servers: int
    rate: float
    pace: float
    faults: Counter[str] = field(default_factory=Counter)
    undone: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    """What went otherwise than at once: broken, refused with which code, …"""
    requests: int = 0
    pictures_checked: int = 0
    asked_again: int = 0
    sent_again: int = 0
    longest: dict[str, float] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    orphans: int = 0
    """Files that killed processes left for the sweep that comes every hour."""
    seconds: float = 0.0
    settled_after: float = 0.0
    before: dict[str, Use] = field(default_factory=dict)
    after: dict[str, Use] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)


async def run(
    folder: Path, *, seed: int, faults: int, gateways: int, servers: int, rate: float, pace: float
) -> Outcome:
    chance = Random(seed)
    outcome = Outcome(seed, gateways, servers, rate, pace)
    began = time.monotonic()
    async with running(folder, gateways, servers, Random(seed + 1)) as site:
        missing = await site.settle(READY_SECONDS)
        assert not missing, missing
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(timeout=None, limits=limits) as http:  # noqa: S113 # each attempt has its own
            load = Load(http, site.urls, chance)
            await _warm_up(load)
            outcome.complaints.extend(f"before any fault: {each}" for each in await site.settle(SETTLE_SECONDS))
            outcome.before = _use(site)
            await _faults_under_load(site, load, outcome, faults, pace)
            await _reckon(site, load, outcome)
    outcome.seconds = time.monotonic() - began
    outcome.complaints.extend(complaint for member in site.members for complaint in member.complaints)
    outcome.complaints.extend(_about_logs(site))
    outcome.complaints.extend(_about_processes(site))
    outcome.starts = {member.name: member.starts for member in site.members}
    return outcome


async def _warm_up(load: Load) -> None:
    for kind in KINDS:
        for _ in range(WARM_UP):
            load.start(kind)
    await load.finish()


async def _faults_under_load(site: Site, load: Load, outcome: Outcome, faults: int, pace: float) -> None:
    sending = asyncio.create_task(load.run(outcome.rate), name="load")
    strikes = Strikes(site)
    try:
        await strikes.run(plan(outcome.seed, faults), pace)
    finally:
        sending.cancel()
        site.heal()
    outcome.faults, outcome.undone, outcome.log = strikes.done, strikes.undone, strikes.log


async def _reckon(site: Site, load: Load, outcome: Outcome) -> None:
    """Everything is healed: all that was asked ends, and all is given back."""
    healed = site.now()
    await load.finish()
    missing = await site.settle(SETTLE_SECONDS)
    outcome.settled_after = site.now() - healed
    outcome.complaints.extend(f"left over {SETTLE_SECONDS:g} s after the last fault: {each}" for each in missing)
    _count(load, outcome)
    outcome.asked = load.asked
    outcome.asked_again = await load.ask_again(AGAIN)
    outcome.complaints.extend(await load.clear_up())
    outcome.complaints.extend(f"left over at the end: {each}" for each in await site.settle(SETTLE_SECONDS))
    outcome.complaints.extend(complaints(load.asked, site.all_downtimes(), _unkept(site), site.killed))
    await asyncio.sleep(2.5)  # in which use is recorded, as docs/api.md says
    recorded = await asyncio.to_thread(_recorded, site)
    outcome.complaints.extend(about_usage(load.asked, recorded, site.answered_in_vain()))
    outcome.complaints.extend(_about_disk(site))
    outcome.orphans = _orphans(site)
    outcome.after = _use(site)
    outcome.complaints.extend(_about_use(outcome))


def _count(load: Load, outcome: Outcome) -> None:
    outcome.requests = len(load.asked)
    outcome.kinds = Counter(each.kind for each in load.asked)
    outcome.endings = tally(load.asked)
    outcome.sent_again = sum(sum(a.end is not End.ANSWERED for a in each.attempts[:-1]) for each in load.asked)
    for each in load.asked:
        outcome.longest[each.kind] = max(outcome.longest.get(each.kind, 0.0), each.waited)
        for attempt in each.attempts:
            if attempt.end in (End.REFUSED, End.BROKEN, End.UNREACHED, End.HUNG):
                what = f" {attempt.status} {attempt.code}" if attempt.end is End.REFUSED else ""
                outcome.attempts[f"{attempt.end}{what}"] += 1
            elif attempt.content:
                outcome.pictures_checked += load.wishes[each.number].n


def _unkept(site: Site) -> set[str]:
    """Requests whose answers were not kept for their key, as the logs say."""
    kept = r"(req_\w+): (?:the answer to its Idempotency-Key is not kept|its lease ran out)"
    said = re.compile(kept + r"|x-idempotency (?:unavailable|not-kept) for (req_\w+)")
    logs = (member.log.read_text(errors="replace") for member in site.gateways)
    return {name for log in logs for names in said.findall(log) for name in names if name}


def _recorded(site: Site) -> dict[str, int]:
    assert site.postgres is not None
    database = site.database.rpartition("/")[2]
    rows = site.postgres.sql("SELECT id, count(*) FROM usage WHERE status = 200 GROUP BY id", database)
    return {name: int(count) for name, count in (row.split("|") for row in rows.splitlines())}


def _about_disk(site: Site) -> Iterator[str]:
    """No request's own files. What killed processes left in the store is swept after an hour (``ORPHAN_SECONDS``)."""
    for path in sorted(site.disk.rglob("*")):
        where = path.relative_to(site.disk)
        if path.is_file() and "spool" in where.parts:
            yield f"left over on disk: {where}"


def _orphans(site: Site) -> int:
    """Files of the store that belong to no job and no upload any more."""
    kinds = ("files", "jobs", "records")
    return sum(path.is_file() for kind in kinds for path in (site.disk / "store" / kind).rglob("*"))


def _use(site: Site) -> dict[str, Use]:
    return {member.name: member.use() for member in site.members}


def _about_use(outcome: Outcome) -> Iterator[str]:
    for kind in ("gateway", "server"):
        files, size = (max(use[i] for name, use in outcome.before.items() if name.startswith(kind)) for i in (0, 1))
        for name, (now_files, now_size) in outcome.after.items():
            if name.startswith(kind) and (now_files > files + MORE_FILES or now_size > size + MORE_BYTES):
                yield (
                    f"{name} has {now_files} open files and {now_size >> 20} MiB; "
                    f"at the beginning a {kind} had {files} and {size >> 20}"
                )


def _about_logs(site: Site) -> Iterator[str]:
    for member in site.members:
        text = member.log.read_text(errors="replace")
        for found in re.finditer(re.escape(TRACEBACK), text):
            before = text[: found.start()].splitlines()[-1:]
            after = text[found.end() :].splitlines()
            last = next(
                (line for line in after if re.match(r"[\w.]+(Error|Exception|Exit|Interrupt)?\b[:\w]", line)), ""
            )
            yield f"{member.name}'s log has a traceback: {' '.join(before)} … {last}"[:400]


def _about_processes(site: Site) -> Iterator[str]:
    """Of those who were killed, too, no child may live on."""
    mark = f"={site.disk}/state-"
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(mark in f"={value}" for value in process.environ().values()):
                yield f"process {process.pid} is left over: {' '.join(process.cmdline())[:200]}"

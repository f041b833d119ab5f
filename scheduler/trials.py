"""Servers are set aside while others cannot fetch from them, or they from others: whom to ask, and what follows.

A fetch that failed accuses nobody by itself. The pair tries again, each of its ends is tried with others, the gateway
included, and what those trials show is judged (``scheduler.reach``). While a pair fails, it is tried anew now and then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from scheduler import events as ev
from scheduler.ledger import Ledger
from scheduler.matcher import Matcher
from scheduler.outbox import Outbox
from scheduler.reach import GATEWAY, PICTURED, READING, Failure, Pair, Verdict, judge, readers, sources
from scheduler.state import Job, Server
from scheduler.timers import Alarm, Timers
from scheduler.transitions import COMMITTED, JobState
from scheduler.view import View
from wire.types import REQUIRED, Role, ServerId

SOME = 3
"""Peers that try a newcomer, and that it tries: probes stay linear in the number of servers."""
NEWCOMERS = 64
"""Servers that are tried because they are new, at most, in each ``NEWCOMERS_EVERY`` seconds; the others wait. A
thousand come at once when their gateway is lost: to let them in is more urgent, and whoever fails with one is tried at
once."""
NEWCOMERS_EVERY = 1.0
PATIENCE = 10.0
"""Seconds after which the answer to a trial is not waited for any longer."""
FIRST_RETRY = 5.0
"""Seconds; the delay doubles with every failure. Also the shortest time between two trials of a pair that works."""
LAST_RETRY = 60.0

TrialEvent = ev.PeerReached | ev.PeerUnreached


class Trials:
    def __init__(self, view: View, outbox: Outbox, ledger: Ledger, matcher: Matcher, timers: Timers):
        self._view = view
        self._outbox = outbox
        self._ledger = ledger
        self._matcher = matcher
        self._timers = timers
        self._pending: dict[Pair, float] = {}
        """Those without an answer, in the order in which they were asked, and when. There may be hundreds, too many to
        go through at every answer."""
        self._doubted: dict[Pair, float] = {}
        """Those that were asked lately because a fetch had failed, and when. That a newcomer was reached is no reason
        to wait if a fetch fails right afterwards: requests would use up all their attempts within a second."""
        self._may_be_aside = False
        """Some server is, or was when it was last concluded what follows."""
        self._owed: dict[Pair, float] = {}
        """Suspected so soon after their last trial that they wait for the next, and until when."""
        self._newcomers: dict[ServerId, None] = {}
        """They wait for their turn, the first one first."""
        self._turns_at, self._turns = 0.0, 0
        """When the last newcomers had their turn, and how many have had it since."""

    # --- occasions ----------------------------------------------------------------------------------------------------

    def met(self, server: Server, now: float) -> None:
        """It joined, or has new roles."""
        if now >= self._turns_at + NEWCOMERS_EVERY and not self._newcomers:
            self._turns_at, self._turns = now, 0
        if self._turns < NEWCOMERS:
            self._turns += 1
            self._ask_newcomer(server, now)
        else:
            self._newcomers[server.id] = None
            self._schedule()

    def _ask_newcomer(self, server: Server, now: float) -> None:
        self._ask([(GATEWAY, server.id), *self._around(GATEWAY, server, SOME)], "it is new", now)

    def suspect(self, fetcher: ServerId, holder: ServerId, now: float) -> None:
        """A fetch has failed."""
        server = self._view.servers.get(holder)
        if server is not None and (fetcher, holder) not in self._view.reach.failing:
            pairs = [(fetcher, holder), (GATEWAY, holder), *self._around(fetcher, server, SOME - 1)]
            self._ask(self._in_doubt(pairs, now), "a fetch failed", now)

    def fetched(self, job: Job, fetcher: ServerId, now: float) -> None:
        """Its inputs have arrived there."""
        for need in job.spec.needs if self._view.reach.failing else ():
            source = job.request.jobs[need]
            if source.outputs:
                self.reached(fetcher, source.holder or fetcher, now)

    def reached(self, fetcher: ServerId, holder: ServerId, now: float) -> None:
        failing = self._view.reach.failing
        if not failing:
            return
        if failing.pop((fetcher, holder), None) is not None:
            # Whatever was wrong there may have been put right: these accuse nobody until they have failed again.
            others = [pair for pair in failing if holder == pair[1] or fetcher == pair[0]]
            for pair in others:
                failing[pair].delay, failing[pair].is_settled = FIRST_RETRY, False
            self._ask(others, "somebody else got through", now)
        self._conclude(now)

    def handle(self, event: TrialEvent, now: float) -> None:
        pair = event.fetcher, event.holder
        self._pending.pop(pair, None)
        if event.holder not in self._view.servers or not (pair[0] == GATEWAY or pair[0] in self._view.servers):
            return
        match event:
            case ev.PeerReached():
                self.reached(*pair, now)
            case ev.PeerUnreached(detail=detail):
                former = self._view.reach.failing.get(pair)
                delay = FIRST_RETRY if former is None else min(2 * former.delay, LAST_RETRY)
                settled = former is not None and former.is_settled
                self._view.reach.failing[pair] = Failure(detail, now + delay, delay, settled)
                self._conclude(now)

    def forget(self, server: ServerId, now: float) -> None:
        """It is gone."""
        self._doubted = {pair: at for pair, at in self._doubted.items() if server not in pair}
        self._pending = {pair: at for pair, at in self._pending.items() if server not in pair}
        self._owed = {pair: at for pair, at in self._owed.items() if server not in pair}
        self._newcomers.pop(server, None)
        failing = self._view.reach.failing
        for pair in [pair for pair in failing if server in pair]:
            del failing[pair]
        self._conclude(now)

    def alarm(self, now: float) -> None:
        late = {pair for pair, at in self._pending.items() if at + PATIENCE <= now}
        for pair in late:
            del self._pending[pair]
        due = [pair for pair, failure in self._view.reach.failing.items() if failure.retry_at <= now]
        for pair in due:
            failure = self._view.reach.failing[pair]
            failure.delay = min(2 * failure.delay, LAST_RETRY) if pair in late else failure.delay
            failure.retry_at = now + max(failure.delay, PATIENCE)  # unless an answer comes first
        self._doubted = {pair: at for pair, at in self._doubted.items() if at + FIRST_RETRY > now}
        self._conclude(now)  # before the next trials are under way: nothing is concluded meanwhile
        self._ask(due, "it could not be reached", now)
        owed = [pair for pair, at in self._owed.items() if at <= now]
        self._doubted.update(dict.fromkeys(owed, now))
        self._ask(owed, "a fetch failed", now)
        if self._newcomers and now >= self._turns_at + NEWCOMERS_EVERY:
            self._turns_at, self._turns = now, 0
            for server in list(islice(self._newcomers, NEWCOMERS)):
                del self._newcomers[server]
                self.met(self._view.servers[server], now)

    # --- trials -------------------------------------------------------------------------------------------------------

    def _around(self, fetcher: ServerId, holder: Server, some: int) -> Iterator[Pair]:
        """Other fetchers with the holder, and the fetcher with other holders; for a newcomer, it is both."""
        servers = self._view.servers
        others = (reader.id for reader in readers(holder, servers) if reader.id != fetcher and not reader.aside)
        yield from ((other, holder.id) for other in islice(others, some))
        reader = holder if fetcher == GATEWAY else servers[fetcher]
        held = (source.id for source in sources(reader, servers) if source is not holder and not source.aside)
        yield from ((reader.id, other) for other in islice(held, some))

    def _in_doubt(self, pairs: Iterable[Pair], now: float) -> Iterator[Pair]:
        """Those that were not asked for the same reason just now; the others are owed."""
        for pair in pairs:
            free_at = self._doubted.get(pair, now - FIRST_RETRY) + FIRST_RETRY
            if now < free_at:
                self._owed.setdefault(pair, free_at)
            else:
                self._doubted[pair] = now
                yield pair

    def _ask(self, pairs: Iterable[Pair], why: str, now: float) -> None:
        for pair in pairs:
            self._owed.pop(pair, None)
            if pair in self._pending:
                continue
            self._pending[pair] = now
            self._outbox.try_peer(*pair, why)
        self._schedule()

    def _schedule(self) -> None:
        times = [failure.retry_at for failure in self._view.reach.failing.values()]
        times += [at + PATIENCE for at in islice(self._pending.values(), 1)]
        times += self._owed.values()
        times += [self._turns_at + NEWCOMERS_EVERY] if self._newcomers else []
        if times:
            self._timers.set(Alarm.REACH, "", min(times))
        else:
            self._timers.clear(Alarm.REACH, "")

    # --- what follows -------------------------------------------------------------------------------------------------

    def _conclude(self, now: float) -> None:
        self._schedule()
        failing = self._view.reach.failing
        if not failing and not self._may_be_aside:
            return
        fetchers = {fetcher for fetcher, _ in self._pending}
        holders = {holder for _, holder in self._pending}
        for (fetcher, holder), failure in failing.items():
            failure.is_settled |= fetcher not in fetchers and holder not in holders
        settled = {pair for pair, failure in failing.items() if failure.is_settled}
        verdict = judge(settled, self._view.servers)
        for server in list(self._view.servers.values()):
            roles = frozenset({*server.spec.capable, *REQUIRED})  # of others it may never have heard
            unread = roles if server.id in verdict.holders else frozenset()
            if (GATEWAY, server.id) in settled:
                unread |= roles & PICTURED
            unfed = roles & READING if server.id in verdict.fetchers else frozenset()
            if (unread, unfed) != (server.unread, server.unfed):
                self._set_aside(server, unread, unfed, self._explain(server, verdict), now)
        self._may_be_aside = any(server.aside for server in self._view.servers.values())

    def _set_aside(self, server: Server, unread: frozenset[Role], unfed: frozenset[Role], why: str, now: float) -> None:
        server.unread, server.unfed, server.why_aside = unread, unfed, why
        self._view.serve(server, server.offered)
        for attempt in list(server.attempts.values()):
            job = attempt.job
            if job.attempt is attempt and job.state in COMMITTED and is_in_vain(job, server):
                self._ledger.abandon(job, why, now)
        gone = dict.fromkeys(job for job in server.holds.values() if job.spec.role in unread)
        self._ledger.lost(gone, now)
        self._matcher.touch(server)
        self._outbox.set_aside(server.id, unread | unfed, why)

    def _explain(self, server: Server, verdict: Verdict) -> str:
        failing = self._view.reach.failing
        by = sorted(verdict.holders.get(server.id, set()) | {f for f, h in failing if f == GATEWAY and h == server.id})
        parts = []
        if by:
            parts.append(f"{self._listed(by)} cannot fetch from it: {failing[by[0], server.id].detail}")
        if held := sorted(verdict.fetchers.get(server.id, ())):
            parts.append(f"it cannot fetch from {self._listed(held)}: {failing[server.id, held[0]].detail}")
        return "; ".join(parts)

    def _listed(self, servers: Iterable[ServerId]) -> str:
        return " and ".join(self._view.servers[each].spec.name if each else "the gateway" for each in servers)


def is_in_vain(job: Job, server: Server) -> bool:
    """Whether its output could not be fetched, or its inputs cannot."""
    return job.spec.role in server.unread or (job.spec.role in server.unfed and job.state is JobState.FETCHING)

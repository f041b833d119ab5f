"""Faults: drawn from a seed all at once, and done one after the other. Those that last overlap."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.chaos.members import Member
from tests.chaos.proxy import Proxy
from tests.chaos.site import Site

FILL_BYTES = 1 << 20
ROLE_SETS = (
    ("encoder",),
    ("dit",),
    ("decoder",),
    ("encoder", "decoder"),
    ("dit", "decoder"),
    ("encoder", "dit", "decoder"),
)


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    share: float
    shortest: float = 0.0
    """Seconds that it lasts, at least and at most."""
    longest: float = 0.0


KINDS = (
    Kind("kill -9 of a server", 14),
    Kind("freeze of a server", 12, 0.1, 5.0),
    Kind("drain of a server", 8),
    Kind("SIGTERM of a server", 3),
    Kind("role switch of a server", 12),
    Kind("few open files of a server", 3, 0.5, 3.0),
    Kind("cut of a control link", 8),
    Kind("slowness of a control link", 5, 0.5, 3.0),
    Kind("silence of a control link", 4, 0.5, 5.0),
    Kind("cut of a data link", 8),
    Kind("slowness of a data link", 4, 0.5, 3.0),
    Kind("silence of a data link", 3, 0.5, 4.0),
    Kind("refusal of a data link", 3, 0.5, 3.0),
    Kind("kill -9 of a gateway", 4),
    Kind("freeze of a gateway", 3, 0.1, 5.0),
    Kind("SIGTERM of a gateway", 2),
    Kind("few open files of a gateway", 2, 0.5, 3.0),
    Kind("crash of a database", 2, 0.0, 2.0),
    Kind("filling of a disk", 2, 0.5, 3.0),
)


@dataclass(frozen=True, slots=True)
class Fault:
    kind: Kind
    target: int
    """Of those there are, modulo their number; where nothing can be done there, the next ones."""
    seconds: float
    extra: int
    """Which roles, how many files."""
    pause: float
    """Seconds until the next one, for a pace of one a second."""


def plan(seed: int, count: int) -> list[Fault]:
    chance = Random(seed)
    return [
        Fault(
            kind := chance.choices(KINDS, [kind.share for kind in KINDS])[0],
            chance.randrange(1 << 16),
            chance.uniform(kind.shortest, kind.longest),
            chance.randrange(1 << 16),
            chance.uniform(0.2, 1.8),
        )
        for _ in range(count)
    ]


class Strikes:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._lasting: set[asyncio.Task[None]] = set()
        self.done: Counter[str] = Counter()
        self.undone: Counter[str] = Counter()
        """Nothing was there to be broken, or the gateway refused it."""
        self.log: list[str] = []
        self._database = asyncio.Lock()
        self._disk = asyncio.Lock()
        self._began = site.now()

    async def run(self, faults: Sequence[Fault], pace: float) -> None:
        for fault in faults:
            task = asyncio.create_task(self._strike(fault), name=fault.kind.name)
            self._lasting.add(task)
            task.add_done_callback(self._lasting.discard)
            await asyncio.sleep(fault.pause * pace)
        await asyncio.gather(*self._lasting)

    async def _strike(self, fault: Fault) -> None:
        self._note(f"{fault.kind.name} {fault.target} {fault.seconds:.1f} s")
        is_done = await self._action(fault)()
        (self.done if is_done else self.undone)[fault.kind.name] += 1

    def _note(self, text: str) -> None:
        self.log.append(f"{self._site.now() - self._began:8.2f} {text}")

    def _action(self, fault: Fault) -> Callable[[], Awaitable[bool]]:
        what, _, where = fault.kind.name.rpartition(" of a ")
        if where == "control link" or where == "data link":
            proxies = self._site.control if where == "control link" else self._site.data
            return lambda: self._link(proxies[fault.target % len(proxies)], what, fault.seconds)
        members = _from(self._site.gateways if where == "gateway" else self._site.servers, fault.target)
        return {
            "kill -9": lambda: self._signal(members, signal.SIGKILL),
            "SIGTERM": lambda: self._signal(members, signal.SIGTERM),
            "freeze": lambda: self._freeze(members, fault.seconds),
            "few open files": lambda: self._few_files(members, fault),
            "drain": lambda: self._drain(members),
            "role switch": lambda: self._roles(members, ROLE_SETS[fault.extra % len(ROLE_SETS)]),
            "crash": lambda: self._crash(fault.seconds),
            "filling": lambda: self._fill(fault.seconds),
        }[what]

    # --- processes ----------------------------------------------------------------------------------------------------

    async def _signal(self, members: Sequence[Member], number: signal.Signals) -> bool:
        for member in members:
            if member.pid is None or (member.told and number == signal.SIGTERM):
                continue  # told a second time it would leave its work, as it should
            if member in self._site.gateways:
                which = self._site.gateways.index(member)
                self._site.goes_down(which)
                if number == signal.SIGKILL:
                    self._site.killed.append((which, self._site.now()))
            return member.send(number, f"{number.name} of the test")
        return False

    async def _freeze(self, members: Sequence[Member], seconds: float) -> bool:
        for member in members:
            if member.pid is not None:
                return await member.freeze(seconds)
        return False

    async def _few_files(self, members: Sequence[Member], fault: Fault) -> bool:
        """Of one that serves: what still starts cannot, and is started again, which shows nothing."""
        where = await self._site.whereabouts()
        down = {self._site.gateways[gateway].name for gateway in self._site.down_since}
        serving = where.keys() | {gateway.name for gateway in self._site.gateways} - down
        for member in members:
            if member.name in serving and member.pid is not None and (files := member.open_files()):
                began = self._site.now()
                is_done = await member.limited(resource.RLIMIT_NOFILE, files + fault.extra % 4, fault.seconds)
                if member in self._site.gateways:  # libuv hangs up on who comes meanwhile, before anything is read
                    times = self._site.downtimes.setdefault(self._site.gateways.index(member), [])
                    times.append((began, self._site.now() + 1.0))
                return is_done
        return False

    # --- orders -------------------------------------------------------------------------------------------------------

    async def _drain(self, members: Sequence[Member]) -> bool:
        where = await self._site.whereabouts()
        for member in members:
            for gateway, _ in where.get(member.name, []):
                if member.told:
                    continue
                member.told = "drained"
                answer = await self._site.told(gateway, "POST", f"/admin/servers/{member.name}/drain")
                if answer is None or answer.status_code == 202:
                    return True
                member.told = "" if member.told == "drained" else member.told
        return False

    async def _roles(self, members: Sequence[Member], roles: Sequence[str]) -> bool:
        where = await self._site.whereabouts()
        for member in members:
            for gateway, _ in where.get(member.name, []):
                body = {"roles": list(roles)}
                answer = await self._site.told(gateway, "POST", f"/admin/servers/{member.name}/roles", json=body)
                if answer is not None and answer.status_code == 202:
                    return True
        return False

    # --- links --------------------------------------------------------------------------------------------------------

    async def _link(self, proxy: Proxy, how: str, seconds: float) -> bool:
        match how:
            case "cut":
                return proxy.cut() > 0
            case "slowness":
                proxy.delay = 0.05
            case "silence":
                proxy.hold()
            case "refusal":
                proxy.is_refusing = True
                proxy.cut()
        await asyncio.sleep(seconds)
        proxy.heal()
        return True

    # --- what is shared -----------------------------------------------------------------------------------------------

    async def _crash(self, seconds: float) -> bool:
        postgres = self._site.postgres
        if self._database.locked() or postgres is None:
            return False
        async with self._database:
            await asyncio.to_thread(postgres.crash)
            await asyncio.sleep(seconds)
            await asyncio.to_thread(postgres.start)
        return True

    async def _fill(self, seconds: float) -> bool:
        if self._disk.locked():
            return False
        async with self._disk:
            began = self._site.now()
            if self._site.is_small_disk:
                ballast = self._site.disk / "ballast"
                await asyncio.to_thread(fill, ballast)
                await asyncio.sleep(seconds)
                ballast.unlink()
            else:  # a quota on what each of them writes, instead
                limits = (each.limited(resource.RLIMIT_FSIZE, 1, seconds) for each in self._site.gateways)
                await asyncio.gather(*limits)
            self._site.full.append((began, self._site.now()))
        return True


def fill(ballast: Path) -> None:
    """Until the disk is full, to the last byte."""
    with ballast.open("wb", buffering=0) as file:
        for size in (FILL_BYTES, 4096, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass


def _from(members: Sequence[Member], target: int) -> list[Member]:
    """All of them, that one first."""
    at = target % len(members)
    return [*members[at:], *members[:at]]

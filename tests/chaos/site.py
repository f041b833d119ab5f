"""All that is broken: gateways behind proxies, stage servers behind proxies, a database, a small disk."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx

from tests.chaos.asking import KEY
from tests.chaos.members import Member
from tests.chaos.proxy import Proxy
from tests.chaos.record import Downtimes
from tests.servers import Postgres, free_port
from wire.errors import USER_MISTAKE

PROFILE = Path(__file__).parents[1] / "integration" / "slow.toml"
TIME_SCALE = "0.1"
ROLES = ("encoder", "dit", "dit,decoder", "encoder,dit,decoder", "dit", "encoder,decoder", "dit", "decoder", "dit")
ADMIN = "operators-only-0123456789"
DISK_MEGABYTES = 64
READY_SECONDS = 300.0
FULL_SECONDS = 5.0
"""After which nobody may complain of a full disk any more."""
LOOK_SECONDS = 0.1


@dataclass
class Site:
    folder: Path
    chance: Random
    gateways: list[Member] = field(default_factory=list)
    servers: list[Member] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    """Of HTTP."""
    control: list[Proxy] = field(default_factory=list)
    """In front of each gateway's control port."""
    data: list[Proxy] = field(default_factory=list)
    """In front of each stage server's data port."""
    postgres: Postgres | None = None
    database: str = ""
    disk: Path = Path()
    is_small_disk: bool = False
    """It is a file system of its own, that can be filled."""
    downtimes: Downtimes = field(default_factory=dict)
    down_since: dict[int, float] = field(default_factory=dict)
    killed: list[tuple[int, float]] = field(default_factory=list)
    full: list[tuple[float, float]] = field(default_factory=list)
    """When the disk was."""
    http: httpx.AsyncClient = field(default_factory=lambda: httpx.AsyncClient(timeout=10))

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    @property
    def members(self) -> list[Member]:
        return [*self.gateways, *self.servers]

    @property
    def proxies(self) -> list[Proxy]:
        return [*self.control, *self.data]

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    # --- when gateways were there -------------------------------------------------------------------------------------

    def goes_down(self, gateway: int) -> None:
        self.down_since.setdefault(gateway, self.now())

    async def watch(self, gateway: int) -> None:
        """Notes when it listens again."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            since = self.down_since.get(gateway)
            if since is None or self.gateways[gateway].pid is None or self.gateways[gateway].told:
                continue
            with suppress(httpx.TransportError):
                await self.http.get(f"{self.urls[gateway]}/healthz")
                self.downtimes.setdefault(gateway, []).append((since, self.now()))
                del self.down_since[gateway]

    def all_downtimes(self) -> Downtimes:
        """With those that are not over."""
        open_ones = {gateway: [(since, float("inf"))] for gateway, since in self.down_since.items()}
        return {
            gateway: self.downtimes.get(gateway, []) + open_ones.get(gateway, [])
            for gateway in range(len(self.gateways))
        }

    # --- what gateways say --------------------------------------------------------------------------------------------

    async def told(self, gateway: int, method: str, path: str, **more: Any) -> httpx.Response | None:
        """None where nobody answers."""
        headers = {"authorization": f"Bearer {ADMIN}"}
        try:
            return await self.http.request(method, f"{self.urls[gateway]}{path}", headers=headers, **more)
        except httpx.TransportError:
            return None

    async def whereabouts(self) -> dict[str, list[tuple[int, dict[str, Any]]]]:
        """Server → the gateways that know it, and what they know."""
        found: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for gateway in range(len(self.gateways)):
            answer = await self.told(gateway, "GET", "/admin/servers")
            if answer is not None and answer.status_code == 200:
                for server in answer.json()["servers"]:
                    found.setdefault(server["name"], []).append((gateway, server))
        return found

    async def unsettled(self) -> list[str]:
        """What there still is to wait for until the site is whole and idle."""
        where = await self.whereabouts()
        missing = [member.name for member in self.servers if member.name not in where]
        found = [f"{name} is nowhere" for name in missing]
        for name, places in where.items():
            if len(places) > 1:
                found.append(f"{name} is at gateways {[gateway for gateway, _ in places]}")
            for _, server in places:
                wrong = [
                    what for what in ("jobs", "store_bytes", "leaving", "set_aside", "switching_to") if server.get(what)
                ]
                found.extend(f"{name} has {what}: {server[what]}" for what in wrong)
        for gateway in range(len(self.gateways)):
            ready = await self.told(gateway, "GET", "/readyz")
            if ready is None or ready.status_code != 200:
                found.append(f"gateway {gateway} is not ready: {None if ready is None else ready.text[:100]}")
            metrics = await self.told(gateway, "GET", "/metrics")
            if metrics is not None:
                under_way = re.findall(r"^disagfusion_requests_under_way\{.*\} (\S+)$", metrics.text, re.MULTILINE)
                if any(float(each) for each in under_way):
                    found.append(f"gateway {gateway} has requests under way: {under_way}")
        return found

    async def settle(self, seconds: float) -> list[str]:
        """Until whole and idle; what is still missing at the end."""
        until = self.now() + seconds
        while (missing := await self.unsettled()) and self.now() < until:  # noqa: ASYNC110 # of other processes
            await asyncio.sleep(0.2)
        return missing

    def is_full(self) -> bool:
        """The disk is, or was a moment ago."""
        return (self.disk / "ballast").exists() or any(self.now() - until < FULL_SECONDS for _, until in self.full)

    def heal(self) -> None:
        for proxy in self.proxies:
            proxy.heal()

    def answered_in_vain(self) -> list[tuple[int, float, float]]:
        """Gateway, since, until: it had nowhere to note what it answered, and was killed before it could."""
        return [
            (gateway, since, at)
            for gateway, at in self.killed
            for since, until in self.full
            if since <= at <= until + 5.0
        ]


def _gateway(site: Site, number: int, port: int, controls: list[int], pause: Callable[[], float]) -> Member:
    peers = [f"tcp://127.0.0.1:{proxy.port}" for proxy in site.control]
    environment = {
        "DISAGFUSION_CELL": f"cell-{number}",
        "DISAGFUSION_PEERS": json.dumps(peers),
        "DISAGFUSION_DATABASE_URL": site.database,
        "DISAGFUSION_FILE_STORE": (site.disk / "store").as_uri(),
        "DISAGFUSION_STATE_DIR": str(site.disk / f"state-{number}"),
        "DISAGFUSION_ADMIN_KEY": ADMIN,
        "DISAGFUSION_API_KEYS": json.dumps({"chaos": KEY}),
        "DISAGFUSION_EMBEDDING_CACHE_BYTES": "0",
        "DISAGFUSION_HEARTBEAT_SECONDS": "0.5",
        "DISAGFUSION_LIVENESS_SECONDS": "3",
        "DISAGFUSION_SHUTDOWN_SECONDS": "15",
        "DISAGFUSION_ROLE_DWELL_SECONDS": "3",
    }
    command = ("gateway", "--port", str(port), "--control-bind", f"tcp://127.0.0.1:{controls[number]}")
    member = Member(f"gateway-{number}", command, environment, site.folder / f"gateway-{number}.log", pause)
    member.on_end = lambda: site.goes_down(number)
    member.may_end = lambda status: (
        status == USER_MISTAKE and site.is_full()
    )  # it cannot start without its state folder
    return member


def _server(site: Site, number: int, port: int, pause: Callable[[], float]) -> Member:
    gateways = ",".join(f"tcp://127.0.0.1:{proxy.port}" for proxy in site.control)
    command = (
        *("stage_server", "--engine", "emulated", "--profile", str(PROFILE), "--time-scale", TIME_SCALE),
        *("--role", ROLES[number % len(ROLES)], "--name", f"server-{number}", "--gateway", gateways),
        *("--data-bind", f"tcp://127.0.0.1:{port}", "--data-advertise", f"tcp://127.0.0.1:{site.data[number].port}"),
    )
    return Member(f"server-{number}", command, {}, site.folder / f"server-{number}.log", pause)


@contextmanager
def small_disk(site: Site) -> Iterator[None]:
    """A file system that can be filled, where this process may mount one; else a folder like any other."""
    site.disk = site.folder / "disk"
    site.disk.mkdir()
    options = ("-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m,mode=0700", "none", str(site.disk))
    site.is_small_disk = os.getuid() == 0 and subprocess.run(["mount", *options], check=False).returncode == 0
    try:
        yield
    finally:
        if site.is_small_disk:
            subprocess.run(["umount", "--lazy", str(site.disk)], check=True)


@asynccontextmanager
async def running(folder: Path, gateways: int, servers: int, chance: Random) -> AsyncIterator[Site]:
    """A site that is whole; at the end every process is stopped, with what that shows in ``complaints``."""
    site = Site(folder, chance)
    async with AsyncExitStack() as stack:
        site.postgres = stack.enter_context(Postgres())
        site.database = site.postgres.new_database()
        stack.enter_context(small_disk(site))
        controls = [free_port() for _ in range(gateways)]
        ports = [free_port() for _ in range(servers)]
        site.control = [await stack.enter_async_context(Proxy(0, port)) for port in controls]
        site.data = [await stack.enter_async_context(Proxy(0, port)) for port in ports]
        site.ports = [free_port() for _ in range(gateways)]
        site.gateways = [
            _gateway(site, number, site.ports[number], controls, lambda: chance.uniform(0, 2))
            for number in range(gateways)
        ]
        site.servers = [_server(site, number, port, lambda: chance.uniform(0, 1)) for number, port in enumerate(ports)]
        tasks = [asyncio.create_task(member.keep(), name=member.name) for member in site.members]
        tasks += [asyncio.create_task(site.watch(number)) for number in range(gateways)]
        try:
            yield site
        finally:
            await asyncio.gather(*(member.stop() for member in site.servers))
            await asyncio.gather(*(member.stop() for member in site.gateways))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await site.http.aclose()

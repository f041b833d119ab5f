"""Three gateways behind nginx, twelve emulated servers, the openai client: all are restarted in turn, one is killed."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI, OpenAIError

from tests.needed import find, needs
from tests.servers import Postgres

pytestmark = [pytest.mark.services, needs("postgresql", "nginx")]

PROFILE = Path(__file__).with_name("slow.toml")
CONFIGURATION = Path(__file__).parents[2] / "deploy" / "cells" / "nginx.conf"
"""The example is what is tested."""

GATEWAYS, RATE = 3, 20.0
ROLES = ("encoder", "dit", "dit", "decoder") * 3
THIRD = 4
"""Servers."""
ADMIN = {"authorization": "Bearer operators-only-0123"}
PICTURE = {"prompt": "x", "size": "64x64"}
TRIES = "$http_idempotency_key|$upstream_addr|$upstream_connect_time|$msec|$request_time"
"""What nginx notes of each request: where it was sent, one after the other, and when it was over."""
BACK_SECONDS = 2.0
PATIENCE = 300.0
"""Seconds for fifteen processes to start on a busy machine."""


@dataclass
class Fleet:
    start: Callable
    until: Callable
    folder: Path
    database: str
    ports: list[int]
    """Of HTTP, one for each gateway."""
    controls: list[int]
    balancer: str = ""
    gateways: list = field(default_factory=list)
    servers: dict[str, object] = field(default_factory=dict)

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    @property
    def endpoints(self) -> str:
        return ",".join(f"tcp://127.0.0.1:{port}" for port in self.controls)

    def start_gateway(self, number: int) -> object:
        peers = ", ".join(f'"tcp://127.0.0.1:{port}"' for port in self.controls)
        return self.start(
            *("-m", "gateway", "--port", str(self.ports[number])),
            *("--control-bind", f"tcp://127.0.0.1:{self.controls[number]}"),
            DISAGFUSION_CELL=f"cell-{number}",
            DISAGFUSION_PEERS=f"[{peers}]",
            DISAGFUSION_DATABASE_URL=self.database,
            DISAGFUSION_FILE_STORE=(self.folder / "store").as_uri(),
            DISAGFUSION_STATE_DIR=str(self.folder / f"state-{number}"),
            DISAGFUSION_ADMIN_KEY=ADMIN["authorization"].removeprefix("Bearer "),
            DISAGFUSION_EMBEDDING_CACHE_BYTES="0",
        )

    def start_server(self, number: int) -> None:
        name = f"server-{number}"
        self.servers[name] = self.start(
            *("-m", "stage_server", "--engine", "emulated", "--profile", str(PROFILE), "--time-scale", "0.1"),
            *("--role", ROLES[number], "--pin", "--name", name, "--gateway", self.endpoints),
        )

    def statuses(self) -> list[int]:
        return [status_of(f"{url}/readyz") for url in self.urls]

    def where(self) -> dict[str, list[int]]:
        """Server → the gateways that know it, and do not know it as leaving."""
        found: dict[str, list[int]] = {}
        for number, url in enumerate(self.urls):
            try:
                told = httpx.get(f"{url}/admin/servers", headers=ADMIN, timeout=30).json()["servers"]
            except httpx.TransportError:
                continue
            for server in told:
                if not server["leaving"]:
                    found.setdefault(server["name"], []).append(number)
        return found

    def is_whole(self) -> bool:
        """Every gateway is ready, every server is at one of them."""
        where = self.where()
        is_settled = len(where) == len(ROLES) and all(len(at) == 1 for at in where.values())
        return is_settled and self.statuses() == [200] * GATEWAYS

    def wait(self, condition: Callable[[], object], what: str) -> object:
        return self.until(condition, what, PATIENCE)


def status_of(url: str) -> int:
    try:
        return httpx.get(url, timeout=30).status_code
    except httpx.TransportError:
        return 0


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def fleet(start, until, free_port, tmp_path, postgres) -> Iterator[Fleet]:
    numbers = range(GATEWAYS)
    fleet = Fleet(
        start, until, tmp_path, postgres.new_database(), [free_port() for _ in numbers], [free_port() for _ in numbers]
    )
    fleet.gateways = [fleet.start_gateway(number) for number in numbers]
    for number in range(len(ROLES)):
        fleet.start_server(number)
    fleet.wait(fleet.is_whole, "three complete cells")
    with balancer(fleet, free_port()) as fleet.balancer:
        yield fleet


@pytest.fixture
def balancer_port(free_port) -> int:
    return free_port()


def balancer(fleet: Fleet, port: int):
    return _nginx(fleet, port)


class _nginx:  # noqa: N801
    def __init__(self, fleet: Fleet, port: int) -> None:
        text = CONFIGURATION.read_text()
        for number in range(GATEWAYS):
            text = text.replace(f"gateway-{number}:8000", f"127.0.0.1:{fleet.ports[number]}")
        text = text.replace("listen 8080", f"listen 127.0.0.1:{port}")
        folder = fleet.folder
        paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
        paths += f"client_body_temp_path {folder}/body; log_format tries escape=json '{TRIES}';"
        paths += f"access_log {folder}/tries.log tries;"
        text = text.replace("http {", f"http {{ {paths}", 1)
        self._file = folder / "nginx.conf"
        self._file.write_text(f"daemon off; pid {folder}/pid;\n{text}")
        self._log = folder / "nginx.log"
        self._url = f"http://127.0.0.1:{port}"
        self._until = fleet.until

    def __enter__(self) -> str:
        self._process = subprocess.Popen([find("nginx"), "-e", str(self._log), "-c", str(self._file)])
        self._until(lambda: status_of(f"{self._url}/healthz") == 200, "nginx")
        return self._url

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)


@dataclass(frozen=True)
class Retried:
    """A request that was sent to another gateway after one had accepted it."""

    key: str
    port: int
    """Of the one that had."""
    began: float
    """Unix time."""


def retried(fleet: Fleet) -> list[Retried]:
    """One whose connection was refused had not been accepted: nothing was begun there."""
    found = []
    for line in (fleet.folder / "tries.log").read_text().splitlines():
        key, addresses, connected, ended, took = line.split("|")
        tries = zip(addresses.split(", "), connected.split(", "), strict=True)
        accepted = [address for address, seconds in tries if seconds != "-"]
        found += [
            Retried(key, int(address.rpartition(":")[2]), float(ended) - float(took)) for address in accepted[:-1]
        ]
    return found


def joined(log: str) -> dict[str, float]:
    """Server → when it joined last, Unix time, as the gateway says."""
    lines = re.findall(r"^(\S+ \S+),(\d+) INFO +gateway (server-\d+)/\w+ joined", log, re.MULTILINE)
    return {
        name: time.mktime(time.strptime(second, "%Y-%m-%d %H:%M:%S")) + int(milliseconds) / 1000
        for second, milliseconds, name in lines
    }


@dataclass
class Load:
    """Requests that leave at their time whatever becomes of others."""

    client: AsyncOpenAI
    tasks: list[asyncio.Task] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    sent: int = 0

    async def run(self) -> None:
        began = time.monotonic()
        while True:
            self.sent += 1
            self.tasks.append(asyncio.create_task(self._one(self.sent)))
            await asyncio.sleep(max(0.0, began + self.sent / RATE - time.monotonic()))

    async def _one(self, number: int) -> None:
        key = {"Idempotency-Key": f"key-{number}"}
        extra = {"num_inference_steps": 2}
        try:
            made = await self.client.images.generate(model="slow", **PICTURE, extra_body=extra, extra_headers=key)
        except OpenAIError as error:
            self.failures.append(f"{number}: {error!r}")
        else:
            if not made.data:
                self.failures.append(f"{number}: no picture")


@asynccontextmanager
async def load(fleet: Fleet) -> AsyncIterator[Load]:
    """20 requests a second, with what the client does by itself about failures."""
    async with AsyncOpenAI(base_url=f"{fleet.balancer}/v1", api_key="none") as client:
        made = Load(client)
        sending = asyncio.create_task(made.run())
        try:
            yield made
        finally:
            sending.cancel()
            await asyncio.gather(*made.tasks)


def restart(fleet: Fleet) -> None:
    """All gateways one after the other, then the servers a third at a time; the next once all is whole again."""
    for number in range(GATEWAYS):
        assert fleet.gateways[number].finish(signal.SIGTERM) == 0, fleet.gateways[number].text()
        fleet.gateways[number] = fleet.start_gateway(number)
        fleet.wait(fleet.is_whole, f"whole after the restart of gateway {number}")
    for first in range(0, len(ROLES), THIRD):
        for number in range(first, first + THIRD):
            assert fleet.servers[f"server-{number}"].finish(signal.SIGTERM) == 0
            fleet.start_server(number)
        fleet.wait(fleet.is_whole, f"whole after the restart of servers from {first} on")


async def test_a_rolling_restart_of_everything_fails_no_request(fleet: Fleet) -> None:
    async with load(fleet) as made:
        await asyncio.to_thread(restart, fleet)
    print(f"{made.sent} requests, {len(made.failures)} failed")
    assert made.failures == []
    for gateway in fleet.gateways:
        assert "Traceback" not in gateway.text()


async def test_of_a_killed_gateway_only_requests_under_way_are_sent_again(fleet: Fleet, postgres: Postgres) -> None:
    before = fleet.where()
    victim = Counter(at[0] for at in before.values()).most_common(1)[0][0]
    lost = {name for name, at in before.items() if at == [victim]}

    def are_back() -> bool:
        where = fleet.where()
        return all(where.get(name, [victim]) != [victim] for name in lost)

    async with load(fleet) as made:
        await asyncio.to_thread(fleet.wait, lambda: made.sent > 2 * RATE, "a load")
        killed = time.time()
        fleet.gateways[victim].kill()
        dead = time.time()
        await asyncio.to_thread(fleet.wait, are_back, "its servers are at the others")
        await asyncio.to_thread(fleet.wait, lambda: made.sent > 8 * RATE, "more of the load")
    back = [joined(fleet.gateways[number].text()) for number in range(GATEWAYS) if number != victim]
    took = max(at - killed for names in back for name, at in names.items() if name in lost and at > killed)
    again = retried(fleet)
    print(f"{len(lost)} servers back after {took:.2f} s; {made.sent} requests, {len(again)} sent again")
    assert took < BACK_SECONDS
    assert made.failures == []
    assert again, "with 20 requests a second some were under way"
    assert {each.port for each in again} == {fleet.ports[victim]}
    assert max(each.began for each in again) <= dead, "only what was under way there"
    others = [fleet.gateways[number].text() for number in range(GATEWAYS) if number != victim]
    answered = Counter(re.findall(r'"POST /v1/images/generations" 200', "".join(others)))
    assert answered.total() >= made.sent * 0.5
    await every_key_is_answered_from_what_was_stored(fleet, made, postgres)


async def every_key_is_answered_from_what_was_stored(fleet: Fleet, made: Load, postgres: Postgres) -> None:
    """By whichever gateway is asked, those that were under way at the killed one among them."""
    urls = [url for number, url in enumerate(fleet.urls) if fleet.gateways[number].popen.poll() is None]
    body = {"model": "slow", **PICTURE, "num_inference_steps": 2}
    async with httpx.AsyncClient(timeout=60) as client:
        for number in range(1, made.sent + 1, 7):
            answers = [
                await client.post(
                    f"{url}/v1/images/generations", json=body, headers={"Idempotency-Key": f"key-{number}"}
                )
                for url in urls
            ]
            assert {answer.status_code for answer in answers} == {200}
            assert len({answer.json()["data"][0]["b64_json"] for answer in answers}) == 1
            assert all(answer.headers["x-idempotency"] == "replayed" for answer in answers)
    rows = postgres.sql("SELECT count(*), count(DISTINCT request_id) FROM answers", fleet.database.rpartition("/")[2])
    assert rows == f"{made.sent}|{made.sent}", "an answer for each key, and of each request"
    kept = postgres.sql("SELECT object FROM answers WHERE object IS NOT NULL", fleet.database.rpartition("/")[2])
    stored = [path.name for path in (fleet.folder / "store" / "answers").glob("*")]
    assert sorted(stored) == sorted(name.rpartition("/")[2] for name in kept.splitlines())

"""Two gateway processes on one PostgreSQL and one Redis, which are killed and come back: limits, budgets, usage."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.needed import needs
from tests.servers import Postgres, Redis

pytestmark = [pytest.mark.services, needs("postgresql", "redis-server")]

PROFILE = Path(__file__).with_name("slow.toml")
PICTURE = {"prompt": "x", "size": "64x64", "num_inference_steps": 1}
ADMIN = {"authorization": "Bearer operators-only-0123"}
LIMIT = 60


@dataclass
class Both:
    gateways: tuple
    urls: tuple[str, str]
    environment: dict[str, str]
    postgres: Postgres
    redis: Redis
    start: Callable[[int], object]
    """A gateway with the settings of the first or the second."""
    made: int = 0
    """Pictures."""

    def key(self, *limits: str) -> dict[str, str]:
        """Headers with a new key."""
        command = [sys.executable, "-m", "gateway", "keys", "create", "--tenant", "acme", *limits]
        made = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True, timeout=60)
        return {"authorization": f"Bearer {made.stdout.strip()}"}

    def both_know(self, key: dict[str, str]) -> bool:
        """A gateway that knows of no key yet serves anybody."""
        strange = {"authorization": "Bearer of-no-key"}
        return all(
            (self.post(gateway, strange).status_code, self.post(gateway, key).status_code) == (401, 200)
            for gateway in (0, 1)
        )

    def post(self, gateway: int, key: dict[str, str]) -> httpx.Response:
        url = f"{self.urls[gateway]}/v1/images/generations"
        answer = httpx.post(url, json=PICTURE, headers=key, timeout=60)
        self.made += answer.status_code == 200
        return answer

    async def post_to_both(self, each: int, key: dict[str, str]) -> Counter[int]:
        """The statuses of requests sent at once."""
        async with httpx.AsyncClient(headers=key, timeout=60) as client:
            urls = [f"{url}/v1/images/generations" for url in self.urls] * each
            answers = await asyncio.gather(*(client.post(url, json=PICTURE) for url in urls))
        return Counter(answer.status_code for answer in answers)

    def recorded(self) -> int:
        """Pictures of all time, as the second gateway tells them."""
        rows = httpx.get(f"{self.urls[1]}/admin/usage", headers=ADMIN, timeout=30).json().get("data", [])
        return sum(row["images"] for row in rows)


@pytest.fixture
def postgres_of_its_own() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def both(start, listening, until, is_ready, free_port, tmp_path, monkeypatch, postgres_of_its_own, redis) -> Both:
    shared = {
        "DISAGFUSION_DATABASE_URL": postgres_of_its_own.new_database(),
        "DISAGFUSION_RATE_LIMIT_URL": redis.url,
        "DISAGFUSION_ADMIN_KEY": ADMIN["authorization"].removeprefix("Bearer "),
        "DISAGFUSION_PORT": "0",
    }
    ports = free_port(), free_port()

    def start_gateway(number: int):
        own = {"DISAGFUSION_STATE_DIR": str(tmp_path / ("one", "two")[number])}
        own["DISAGFUSION_CONTROL_BIND"] = f"tcp://127.0.0.1:{ports[number]}"
        return start("-m", "gateway", **shared, **own)

    gateways = [start_gateway(number) for number in (0, 1)]
    for port in ports:
        roles = ("--role", "encoder,dit,decoder", "--gateway", f"tcp://127.0.0.1:{port}", "--time-scale", "0.01")
        start("-m", "stage_server", "--engine", "emulated", "--profile", str(PROFILE), *roles)
    urls = tuple(listening(gateway) for gateway in gateways)
    until(lambda: all(is_ready(url) for url in urls), "both gateways are ready")
    return Both(tuple(gateways), urls, dict(os.environ) | shared, postgres_of_its_own, redis, start_gateway)


async def test_limits_budgets_and_usage_of_two_gateways(both, until):
    key = both.key("--requests-per-minute", str(LIMIT))
    until(partial(both.both_know, key), "both know the key")
    statuses = await both.post_to_both(50, key)
    granted = statuses[200] + 2
    assert granted <= 1.05 * LIMIT
    assert granted >= LIMIT - 2, "those that asked before both knew the key were refused as unknown, and not counted"
    assert statuses[429] == 100 - statuses[200]

    poor = both.key("--device-seconds-per-month", "0.001")
    until(lambda: both.post(0, poor).status_code == 200, "the key is known")
    for gateway in (0, 1):
        refused = until(partial(_refused, both, gateway, poor), "the budget is used up")
        assert refused.json()["error"]["code"] == "insufficient_quota"
    until(lambda: both.recorded() == both.made + statuses[200], "usage is written")


def test_redis_is_killed_and_comes_back(both, until):
    key = both.key("--requests-per-minute", "1000", "--concurrent-requests", "5")
    until(partial(both.both_know, key), "both know the key")
    both.redis.kill()
    for gateway in (0, 1, 0, 1):
        answer = both.post(gateway, key)
        assert (answer.status_code, answer.headers["x-ratelimit-limit-requests"]) == (200, "1000")
    both.redis.start()
    for process in both.gateways:
        until(lambda text=process.text: "is back: limits hold over all gateways again" in text(), "Redis is back")
    assert [both.post(gateway, key).status_code for gateway in (0, 1)] == [200, 200]
    for process in both.gateways:
        assert process.text().count("does not answer") == 1
        assert "Traceback" not in process.text()


def test_postgresql_is_killed_and_comes_back(both, until, tmp_path):
    key = both.key()
    until(partial(both.both_know, key), "both know the key")
    until(lambda: both.recorded() == both.made, "what was used before is written")
    both.postgres.crash()
    waiting = [tmp_path / name / "usage-waiting.jsonl" for name in ("one", "two")]
    for _ in range(5):
        assert [both.post(gateway, key).status_code for gateway in (0, 1)] == [200, 200], "generations go on"
    until(lambda: all(_lines(file) >= 5 for file in waiting), "usage waits in files")
    answer = httpx.get(f"{both.urls[1]}/admin/usage", headers=ADMIN, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
    both.gateways[0].kill()  # what is in its file outlives it
    both.postgres.start()
    until(lambda: both.recorded() == both.made - 5, "the usage of the gateway that lives is written")
    restarted = both.start(0)
    until(lambda: both.recorded() == both.made, "all usage is written, once")
    until(lambda: not any(file.exists() for file in waiting), "what is written waits no longer")
    for process in (restarted, both.gateways[1]):
        assert "records of use have been written from" in process.text()
        assert "Traceback" not in process.text()


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


def _refused(both: Both, gateway: int, key: dict[str, str]) -> httpx.Response | None:
    answer = both.post(gateway, key)
    return answer if answer.status_code == 429 else None

"""A real Prometheus reads the gateway under load: its figures are those of the load generator, and every panel of the
dashboard and every rule finds something to say."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from tests.integration.conftest import PROFILE, Start, launcher, until
from tests.needed import find, needs
from tests.servers import free_port

pytestmark = [pytest.mark.services, needs("prometheus")]

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "observability"
KEY = "sk-scraped-0123456789"
REQUESTS = 40
MODEL = "slow"
SETTLED_SECONDS = 120.0


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dashboard = _load(FOLDER / "dashboard.py")


@dataclass
class Watched:
    """Prometheus, and what the load generator says of the load that it saw."""

    url: str
    load: dict[str, Any]

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30)
        told = answer.json()
        assert told["status"] == "success", (expression, told)
        return list(told["data"]["result"])

    def shown(self, expression: str) -> list[dict[str, Any]]:
        """Not nothing: after a scrape that came too late on a busy machine, Prometheus knows nothing until the next."""
        return until(lambda: self.query(expression), expression, SETTLED_SECONDS)

    def value(self, expression: str) -> float:
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else 0.0

    def tells(self, expression: str, expected: float) -> bool:
        return [float(series["value"][1]) for series in self.query(expression)] == [expected]

    def rules(self) -> list[dict[str, Any]]:
        groups = httpx.get(f"{self.url}/api/v1/rules", timeout=30).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("prometheus")
    with launcher(folder) as start:
        url = _service(start)
        prometheus = Watched(f"http://127.0.0.1:{free_port()}", {})
        with _prometheus(folder, url, prometheus):
            _draw(url, 1, folder)
            until(lambda: _drawn(prometheus) == 1, "Prometheus sees the first request", SETTLED_SECONDS)
            prometheus.load = _draw(url, REQUESTS, folder)
            until(lambda: _drawn(prometheus) == 1 + REQUESTS, "Prometheus sees the load", SETTLED_SECONDS)
            yield prometheus


def _service(start: Start) -> str:
    port, control = free_port(), f"tcp://127.0.0.1:{free_port()}"
    settings = {"DISAGFUSION_METRICS_KEY": KEY, "DISAGFUSION_HEARTBEAT_SECONDS": "0.5"}
    start("-m", "gateway", "--port", str(port), "--control-bind", control, **settings)
    for role in ("encoder", "dit", "decoder"):
        emulated = ("--engine", "emulated", "--profile", str(PROFILE), "--time-scale", "0.1")
        start("-m", "stage_server", "--role", role, "--name", role, "--gateway", control, *emulated)
    url = f"http://127.0.0.1:{port}"
    until(lambda: _is_ready(url), "the service is ready", SETTLED_SECONDS)
    return url


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=30).is_success
    except httpx.TransportError:
        return False


def _prometheus(folder: Path, url: str, watched: Watched) -> subprocess.Popen[bytes]:
    scrape = {
        "job_name": "disagfusion",
        "static_configs": [{"targets": [url.removeprefix("http://")]}],
        "authorization": {"credentials": KEY},
    }
    every = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"}
    config = {"global": every, "rule_files": [str(FOLDER / "rules.yml")], "scrape_configs": [scrape]}
    (folder / "prometheus.yml").write_text(json.dumps(config))  # which is YAML, too
    address = watched.url.removeprefix("http://")
    return _Ended(
        [
            str(find("prometheus")),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "prometheus.log").open("wb"),
    )


class _Ended(subprocess.Popen[bytes]):
    """Is told to end where its ``with`` does."""

    def __exit__(self, *exception: Any) -> None:
        self.terminate()
        super().__exit__(*exception)


def _drawn(watched: Watched) -> float:
    try:
        return watched.value(f'disagfusion_requests_total{{model="{MODEL}",outcome="completed"}}')
    except httpx.TransportError:  # it starts
        return -1


def _draw(url: str, requests: int, folder: Path) -> dict[str, Any]:
    told = folder / f"load-{requests}.json"
    command = ["-m", "clients", "load", "--url", f"{url}/v1", "--requests", str(requests), "--json", str(told)]
    load = ["--arrivals", "closed", "--concurrency", "4", "--size", "64x64", "--steps", "4"]
    subprocess.run([sys.executable, *command, *load], check=True, capture_output=True)
    found: dict[str, Any] = json.loads(told.read_text())
    found = found.get("summary", found)
    assert found["succeeded"] == requests, found
    return found


def test_it_counts_what_the_load_generator_counted(watched: Watched) -> None:
    every = 1 + watched.load["succeeded"]
    route = 'http_route="/v1/images/generations",http_response_status_code="200"'
    for expression, expected in {
        "sum(disagfusion_requests_total)": every,
        "sum(disagfusion_pictures_total)": every,
        f"sum(http_server_request_duration_seconds_count{{{route}}})": every,
        "sum(gen_ai_server_request_duration_seconds_count)": every,
        'sum(disagfusion_admissions_total{decision="admitted"})': every,
        'sum(disagfusion_transfers_total{reader="gateway"})': every,
        'sum(disagfusion_stage_phase_seconds_count{stage="dit",phase="compute"})': every,
        'sum(disagfusion_server_events_total{event="joined"})': 3,
        "sum(disagfusion_servers)": 3,
        "disagfusion_requests_under_way": 0,
        "disagfusion_ready": 1,
    }.items():  # a scrape may fall between two counts of one request
        until(partial(watched.tells, expression, expected), f"{expression} is {expected}", SETTLED_SECONDS)


def test_its_times_are_those_that_clients_saw(watched: Watched) -> None:
    """Clients wait for the network and their own processor as well, and one request came before the load."""
    assert watched.shown("disagfusion_ready")
    ours = watched.value("sum(http_server_request_duration_seconds_sum{http_route='/v1/images/generations'})")
    theirs = watched.load["latency_seconds"]["mean"] * REQUESTS
    assert ours / (1 + REQUESTS) < 2 * theirs / REQUESTS
    computed = watched.value("sum(disagfusion_stage_phase_seconds_sum{phase='compute'})")
    assert computed > 0
    busy = "sum(disagfusion_server_busy_seconds_total)"  # which comes with the servers' next heartbeats
    until(lambda: computed <= 1.05 * watched.value(busy), f"{busy} reaches {computed} s", SETTLED_SECONDS)


@pytest.mark.parametrize("panel", dashboard.PANELS, ids=lambda panel: panel.title)
def test_every_panel_shows_something(watched: Watched, panel: Any) -> None:
    found = watched.shown(panel.query.replace("$__rate_interval", "5m"))
    values = [float(series["value"][1]) for series in found]
    assert all(math.isfinite(value) and value >= 0 for value in values), values


def test_every_rule_works_and_none_fires(watched: Watched) -> None:
    rules = until(lambda: [r for r in watched.rules() if r["health"] != "unknown"], "rules are evaluated")
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == []
    assert watched.shown("disagfusion:failed_requests:ratio_rate5m")


def test_rules_fire_when_they_should() -> None:
    promtool = Path(str(find("prometheus"))).with_name("promtool")
    command = [str(promtool), "test", "rules", str(FOLDER / "rules_test.yml")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr

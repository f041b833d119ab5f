"""A fleet on a Ray cluster of four nodes on this machine, with pretended GPUs; one node dies under load."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.curve import generate_keys
from tests.fleet.running import ROOT, Commands, until
from tests.servers import free_port

pytestmark = pytest.mark.services
ray = pytest.importorskip("ray", reason="ray is not installed: pip install -c constraints.txt '.[ray]'")

EMULATED = 'engine = "emulated"\nprofile = "tiny-shapes-cpu"\noptions = { time_scale = 0.1 }'
BUNDLED = 'source = "tiny-shapes"\noptions = { threads = 1, device = "cpu" }'
DESCRIBED = """
name = "tested"
allow_plaintext = true
[models.shapes]
{}
[pools.around]
models = ["shapes"]
roles = ["encoder", "decoder"]
min = 2
max = 3
placement = "spread"
resources = {{ num_gpus = 1 }}
[pools.dit]
models = ["shapes"]
begin = [["dit"]]
min = 2
placement = "spread"
resources = {{ num_gpus = 1 }}
[relays.front]
port = {}
"""
PLAIN = "allow_plaintext = true\n"
ENCRYPTED = (
    '[keys]\ncurve_gateways = {file = "gateways"}\ncurve_servers = {file = "servers"}\nrelay_key = {file = "relay"}\n'
)
STORE_BYTES = 80 << 20


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A head without GPUs and three nodes with three each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the nodes, where the package is not installed
    monkeypatch.setenv("DISAGFUSION_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else 15, which on a busy machine starts nothing within patience
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE_BYTES},
    )
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    for _ in range(3):
        cluster.add_node(num_cpus=6, num_gpus=3, object_store_memory=STORE_BYTES)
    yield cluster
    cluster.shutdown()


class Traffic:
    """Four clients, each with one request after another, until told to end."""

    def __init__(self, fleet: Commands) -> None:
        self.answers: list[int] = []
        self._fleet = fleet
        self._ending = threading.Event()
        self._clients = [threading.Thread(target=self._ask) for _ in range(4)]

    def __enter__(self) -> Traffic:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for client in self._clients:
            client.join()

    def _ask(self) -> None:
        while not self._ending.is_set():
            self.answers.append(self._fleet.picture().status_code)

    def go_on(self, pictures: int) -> None:
        """Wait for so many further ones."""
        enough = len(self.answers) + pictures
        until(lambda: len(self.answers) >= enough, f"{pictures} pictures")


@pytest.fixture(params=[EMULATED, BUNDLED], ids=["emulated", "bundled model"])
def fleet(request: pytest.FixtureRequest, cluster: Any, tmp_path: Path) -> Commands:
    described = DESCRIBED.format(request.param, free_port())
    if request.param == EMULATED:
        for name in ("gateways", "servers"):
            pair = generate_keys()
            (tmp_path / name).write_text(f"{pair.public} {pair.secret}\n")
        (tmp_path / "relay").write_text("swordfish")
        described = described.replace(PLAIN, ENCRYPTED)
    return Commands(tmp_path, described, "--on", "ray")


def pids(fleet: Commands) -> dict[str, int]:
    """Server, gateway or relay → its process; those that run."""
    told = json.loads(fleet.said("status", "--json").stdout)
    members = [*told["gateways"], *told["relays"], *(each for pool in told["pools"] for each in pool["servers"])]
    return {each["name"]: int(each["where"].rpartition(" ")[2]) for each in members if each["condition"] == "running"}


def restart_the_supervisor() -> None:
    ray.init(address=os.environ["RAY_ADDRESS"], namespace="disagfusion", log_to_driver=False)
    ray.kill(ray.get_actor("tested"), no_restart=False)
    ray.shutdown()


def node_of(cluster: Any, pid: int) -> Any:
    above = {process.pid for process in psutil.Process(pid).parents()}
    return next(node for node in cluster.worker_nodes if node.all_processes["raylet"][0].process.pid in above)


def test_a_node_dies_under_load_and_its_servers_are_back_elsewhere(fleet: Commands, cluster: Any) -> None:
    up = fleet.said("up")
    assert up.returncode == 0, up.stderr
    until(fleet.is_ready, "the fleet is ready")
    assert fleet.said("up").returncode == 2
    on_the_head = {"main", "front"}
    everything = {*on_the_head, "around-1", "around-2", "dit-1", "dit-2"}
    before = until(lambda: found if (found := pids(fleet)).keys() == everything else {}, "all run")
    with Traffic(fleet) as traffic:
        traffic.go_on(8)
        lost = node_of(cluster, before["dit-1"])
        there = {name for name, pid in before.items() if name not in on_the_head and node_of(cluster, pid) is lost}
        assert "dit-2" not in there, "spread"
        cluster.remove_node(lost, allow_graceful=False)
        after = until(lambda: found if (found := pids(fleet)).keys() == everything else {}, "all run again")
        assert all(after[name] != before[name] for name in there)
        assert all(not psutil.pid_exists(before[name]) for name in there)
        traffic.go_on(8)
        assert fleet.said("scale", "around=3").returncode == 0
        three = until(lambda: found if "around-3" in (found := pids(fleet)) else {}, "the third server runs")
        restart_the_supervisor()
        assert pids(fleet) == three, "it goes on with what runs"
        assert fleet.said("scale", "around=2").returncode == 0
        assert "around-3" not in pids(fleet)
        traffic.go_on(4)
    assert set(traffic.answers) == {200}
    processes = [psutil.Process(pid) for pid in pids(fleet).values()]
    assert fleet.said("down").returncode == 0
    assert not psutil.wait_procs(processes, timeout=10)[1]
    assert fleet.said("status").returncode == 2
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    assert ray.util.list_named_actors(all_namespaces=True) == []
    assert all(group["state"] == "REMOVED" for group in ray.util.placement_group_table().values())
    ray.shutdown()


def test_no_cluster_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    fleet = Commands(tmp_path, DESCRIBED.format(EMULATED, free_port()), "--on", "ray")
    status = fleet.said("status")
    assert status.returncode == 2
    assert "fleet: no Ray cluster answers at 127.0.0.1:1: " in status.stderr


def test_sockets_beyond_loopback_want_a_word(cluster: Any, tmp_path: Path) -> None:
    fleet = Commands(tmp_path, DESCRIBED.format(EMULATED, free_port()).replace(PLAIN, ""), "--on", "ray")
    up = fleet.said("up")
    assert up.returncode == 2
    assert "write allow_plaintext = true if that network is private" in up.stderr
    assert fleet.said("status").returncode == 2

"""Stage servers behind NAT: nobody can connect to them, so their data goes through a relay, and every request ends.

On the bridge: the gateway at 10.77.0.1, ``a`` (encoder) at .2, relays at .5 and .6. ``d`` (dit) and ``e`` (decoder) are
each on a network of its own, whose router masks their addresses as that of a home does.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.namespaces import PATIENCE, Machines, ip, until
from tests.needed import find, needs

HOSTS = {
    "gw": "10.77.0.1",
    "a": "10.77.0.2",
    "r1": "10.77.0.5",
    "r2": "10.77.0.6",
    "dr": "10.77.0.7",
    "er": "10.77.0.8",
}
HOMES = {"d": "", "e": ""}
LATENTS = 64 * 64 * 16 * 2
"""Bytes of FLUX.1's, at 512 x 512."""

ADVICE = r"--relay tcp://HOST:PORT"
RELAYS = ("--relay", "tcp://10.77.0.5:5700,tcp://10.77.0.6:5700", "--data-bind", "tcp://127.0.0.1:*")

pytestmark = [
    pytest.mark.services,
    needs("iproute2", "iptables"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.xdist_group("network"),
]


def put_behind_nat(machines: Machines, name: str, router: str) -> None:
    ip(
        "-n", f"{machines.prefix}-{router}", "link", "add", "eth1", "type", "veth",
        "peer", "name", "eth0", "netns", f"{machines.prefix}-{name}",
    )  # fmt: skip
    for where, device, address in ((router, "eth1", "192.168.7.1/24"), (name, "eth0", "192.168.7.2/24")):
        machines.ip(where, "addr", "add", address, "dev", device)
        machines.ip(where, "link", "set", device, "up")
    machines.ip(name, "route", "add", "default", "via", "192.168.7.1")
    machines.run(router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    iptables = str(find("iptables"))
    machines.run(router, iptables, "-t", "nat", "-A", "POSTROUTING", "-o", "eth0", "-j", "MASQUERADE")
    machines.run(router, iptables, "-A", "FORWARD", "-i", "eth0", "-m", "conntrack",
                 "!", "--ctstate", "ESTABLISHED,RELATED", "-j", "DROP")  # fmt: skip


def nat_fault(machines: Machines) -> str:
    """What iptables says of its table where the kernel has none; empty where it has."""
    look = ["ip", "netns", "exec", f"{machines.prefix}-dr", str(find("iptables")), "-t", "nat", "-L"]
    done = subprocess.run(look, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path, HOSTS | HOMES)
    try:
        if fault := nat_fault(made):
            pytest.skip(f"iptables translates no addresses on this kernel: {fault}")
        for name in HOMES:
            put_behind_nat(made, name, f"{name}r")
        made.gateway()
        for name in ("r1", "r2"):
            relay(made, name)
        made.stage("a", "encoder")
        yield made
    finally:
        made.close()


def relay(machines: Machines, name: str) -> None:
    bind = ("--bind", f"tcp://{HOSTS[name]}:5700", "--metrics-port", "9100")
    machines.start(name, "-m", "stage_server", "relay", *bind, DISAGFUSION_STAGE_RELAY_KEY="of both")
    machines.says(name, "meet at")


def at_home(machines: Machines, name: str, role: str, *options: str) -> None:
    key = {"DISAGFUSION_STAGE_RELAY_KEY": "of both"} if "--relay" in options else {}
    machines.stage(name, role, *options, **key)


def copied(machines: Machines, name: str) -> float:
    """Bytes, by the relay's own count."""
    page = machines.curl(f"http://{HOSTS[name]}:9100/metrics", most=10_000)
    found = re.search(r"^disagfusion_relay_bytes_total (\S+)", page, re.MULTILINE)
    assert found, page
    return float(found[1])


def test_every_picture_of_servers_behind_two_nats_and_the_loss_of_a_relay(machines: Machines) -> None:
    at_home(machines, "d", "dit", *RELAYS)
    at_home(machines, "e", "decoder", *RELAYS)
    until(lambda: '"status":"ready"' in machines.ready(), "ready")
    assert machines.draw(8) == []
    assert copied(machines, "r1") > 8 * LATENTS
    failed: list[str] = []
    drawing = threading.Thread(target=lambda: failed.extend(machines.draw(12)))
    drawing.start()
    before = copied(machines, "r1")
    until(lambda: copied(machines, "r1") > before, "more pictures are on their way")
    machines.processes["r1"].kill()
    drawing.join(PATIENCE)
    assert not drawing.is_alive()
    assert failed == []
    assert copied(machines, "r2") > 0
    machines.says("d", "the relay tcp://10.77.0.5:5700 is lost")
    relay(machines, "r1")
    machines.says("r1", "10.77.0.7:.* is reached through this relay now")
    machines.says("r1", "10.77.0.8:.* is reached through this relay now")
    assert machines.draw(4) == []


def test_without_a_relay_nobody_is_refused_for_nothing(machines: Machines) -> None:
    """An address that leads nowhere sets the server aside, and a loopback one is no start: both name the cure."""
    at_home(machines, "d", "dit", "--data-bind", "tcp://192.168.7.2:5601")
    assert "give it a --relay" in machines.says("gw", "WARNING.*d/.* gets no .*dit.*")
    at_home(machines, "e", "decoder", "--data-bind", "tcp://127.0.0.1:*")
    assert machines.processes["e"].wait(PATIENCE) == 2
    assert re.search(ADVICE, machines.log("e"))

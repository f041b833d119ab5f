"""Servers in network namespaces that cannot reach each other: no request fails, and everybody is told why.

Each machine is a namespace on one bridge: the gateway at 10.77.0.1, ``a`` (encoder, decoder) at .2, dits at .3 and .4.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.namespaces import PATIENCE, Machines, until
from tests.needed import needs

HOSTS = {"gw": "10.77.0.1", "a": "10.77.0.2", "d1": "10.77.0.3", "d2": "10.77.0.4"}

pytestmark = [
    pytest.mark.services,
    needs("iproute2"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.xdist_group("network"),
]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path, HOSTS)
    try:
        made.gateway()
        made.stage("a", "encoder,decoder")
        yield made
    finally:
        made.close()


def both(machines: Machines, *options: str) -> None:
    """A good dit and one with these options."""
    machines.stage("d1", "dit")
    until(lambda: '"status":"ready"' in machines.ready(), "ready")
    machines.stage("d2", "dit", *options)
    machines.says("gw", "d2/.* joined")


@pytest.mark.parametrize(
    ("advertised", "fault"),
    [
        ("tcp://10.77.0.4:5999", "connection refused"),
        ("tcp://10.77.0.99:5601", "no answer within|No route"),
        ("tcp://nowhere.invalid:5601", "does not resolve"),
        ("tcp://10.77.0.3:5601", "its CURVE keys are not those expected"),
    ],
    ids=["dead", "wrong", "unresolvable", "another server's"],
)
def test_a_wrong_address_costs_no_request(machines: Machines, advertised: str, fault: str) -> None:
    both(machines, "--data-advertise", advertised)
    assert machines.draw(20) == []
    line = machines.says("gw", "WARNING.*d2/.* gets no .*dit.*")
    assert re.search(fault, line), line
    assert advertised in line
    assert "the gateway" in line
    assert "--data-advertise" in line
    machines.says("d2", "this server gets no .*dit.* work: .*" + re.escape(advertised))
    assert '"dit":1' in machines.ready()


def test_the_only_dit_with_a_wrong_address_is_none(machines: Machines) -> None:
    machines.stage("d2", "dit", "--data-advertise", "tcp://10.77.0.4:5999")
    machines.says("gw", "gets no")
    answer = machines.ready()
    assert answer.startswith("503"), answer
    assert "tcp://10.77.0.4:5999: connection refused" in answer


def test_a_firewall_in_mid_run_and_its_end(machines: Machines) -> None:
    both(machines)
    assert machines.draw(4) == []
    machines.drop("d2", "a")
    assert machines.draw(20) == []
    machines.mend("d2", "a")
    until(lambda: "set_aside" not in machines.ready() and '"dit":2' in machines.ready(), "both dits again")
    assert machines.draw(4) == []


def test_a_fetcher_that_is_cut_off_from_everybody(machines: Machines) -> None:
    """It reaches the gateway, which reaches it."""
    both(machines)
    machines.drop("d2", "a")
    assert machines.draw(20) == []
    machines.says("gw", "WARNING.*d2/.* gets no .*dit.*it cannot fetch from a: ")
    assert '"dit":1' in machines.ready()


def test_a_loopback_address_refuses_to_start(machines: Machines) -> None:
    machines.stage("d2", "dit", "--data-bind", "tcp://127.0.0.1:*")
    assert machines.processes["d2"].wait(PATIENCE) == 2
    assert "set --data-bind tcp://HOST:*" in machines.log("d2")


@pytest.mark.parametrize(
    ("gateway", "words"),
    [
        ("tcp://nowhere.invalid:5600", "does not resolve"),
        ("tcp://10.77.0.1:5999", "connection refused"),
        ("tcp://10.77.0.99:5600", "no answer within|No route"),
    ],
)
def test_why_the_gateway_is_not_reached(machines: Machines, gateway: str, words: str) -> None:
    machines.stage("d1", "dit", "--gateway", gateway)
    machines.says("d1", f"no gateway is reachable at {gateway}.*({words})")


def test_a_wrong_key_of_the_gateway_or_of_the_server(machines: Machines) -> None:
    machines.says("gw", "a/.* joined")
    machines.stage("d1", "dit", gateway_key=machines.keys["a"][0])
    machines.says("d1", "does not accept the CURVE keys")
    machines.says("d1", "no gateway lets this server in")
    assert "is reachable" not in machines.log("d1")
    stranger = zmq.curve_keypair()
    machines.keys["d2"] = [key.decode() for key in stranger]
    machines.stage("d2", "dit")
    assert stranger[0].decode() in machines.says("gw", "a connection from 10.77.0.4 was refused: .*")

"""``up``, ``status``, ``scale`` and ``down`` of a fleet on Ray, from a shell."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import ray
from ray.exceptions import RayTaskError

from fleet.description import Fleet
from fleet.keys import Secrets
from fleet.launcher import LaunchFailed
from fleet.local.desk import NotUp, UpAlready
from fleet.on_ray.launcher import NAMESPACE, ON_THE_HEAD
from fleet.on_ray.supervisor import FleetActor

PROBE_SECONDS = 5.0


def up(fleet: Fleet, secrets: Secrets, where: str) -> None:
    """Returns when all is started, unless there was no cluster: one that is started here ends with this process."""
    output = sys.stdout
    with _connected(where, start=True) as is_ours:
        if _find(fleet) is not None:
            raise UpAlready(f"a fleet named {fleet.name!r} is up already: 'status' shows it, 'down' ends it")
        actor = ray.remote(FleetActor).options(
            name=fleet.name,
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=-1,
            num_cpus=0,
            resources=ON_THE_HEAD,
        )
        supervisor = actor.remote(fleet, secrets)
        try:
            node = _asked(supervisor.up.remote())
        except BaseException:
            ray.kill(supervisor, no_restart=True)
            raise
        output.write(f"{fleet.name} is starting; its gateways are at {node}. 'status' shows it, 'down' ends it\n")
        output.flush()
        if is_ours:
            output.write("No cluster was found, so one was started here; Ctrl-C drains the fleet and ends both\n")
            output.flush()
            _until_signalled()
            _end(supervisor)


def ask(fleet: Fleet, where: str, order: str, **arguments: Any) -> Any:
    """Raises ``NotUp``, or ``LaunchFailed`` with what the fleet has against it."""
    with _connected(where):
        supervisor = _find(fleet)
        if supervisor is None:
            raise NotUp(f"no fleet named {fleet.name!r} is up on this cluster: 'up' starts it")
        if order == "down":
            return _end(supervisor)
        return _asked(getattr(supervisor, order).remote(**arguments))


def _until_signalled() -> None:
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    while not told.wait(1.0):  # with a bound, as the kernel may hand the signal to one of Ray's threads
        pass


def _end(supervisor: Any) -> None:
    _asked(supervisor.down.remote())
    ray.kill(supervisor, no_restart=True)


def _find(fleet: Fleet) -> Any:
    try:
        return ray.get_actor(fleet.name, namespace=NAMESPACE)
    except ValueError:
        return None


def _asked(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, LaunchFailed):
            raise LaunchFailed(str(error.cause)) from None
        raise


@contextmanager
def _connected(where: str, *, start: bool = False) -> Iterator[bool]:
    """Whether the cluster is one that was started here, which ends with the block. ``where``: ray, or ray://HOST:PORT."""
    address = os.environ.get("RAY_ADDRESS", "auto") if where == "ray" else where
    quiet = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.WARNING}
    is_ours = False
    try:
        _probe(address)
        ray.init(address=address, **quiet)
    except (OSError, ImportError) as error:  # a ConnectionError, where no cluster runs here
        if address != "auto" or not start:
            raise NotUp(f"no Ray cluster answers at {address}: {error}") from None
        is_ours = True
        ray.init(address="local", include_dashboard=False, **quiet)
    try:
        with redirect_stdout(sys.stderr):  # where Ray may write about nodes at any time
            yield is_ours
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Raise ``OSError`` where nothing listens: Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").partition("/")[0].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), PROBE_SECONDS).close()

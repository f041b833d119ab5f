"""The actor around one process of a fleet. Ray places it, gives it GPUs, and starts it elsewhere when its node dies."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

import ray

from fleet.description import Fleet
from fleet.keys import Secrets
from fleet.options import state_folder
from fleet.programs import Kind, Member, gateway_program, relay_program, server_program
from wire.children import STOP_SECONDS, CannotStart, Child, Condition, Program

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a host runs. Pickled by Ray."""

    fleet: Fleet
    member: Member
    gateway_host: str
    """Of the node with the gateways, where servers reach them."""
    secrets: Secrets


@dataclass(frozen=True, slots=True)
class Told:
    life: str
    """Another one whenever Ray has started the actor anew."""
    condition: Condition
    where: str
    starts: int
    """In this life."""


class Host:
    def __init__(self, assignment: Assignment) -> None:
        self._life = uuid4().hex
        self._node = ray.util.get_node_ip_address()
        self._child = Child(_program(assignment, self._node), on_line=_write)
        self._loop = asyncio.new_event_loop()
        # The kernel ends the child with the thread that started it, so this one lives as long as the actor.
        self._thread = threading.Thread(target=self._run, name=assignment.member.name, daemon=True)
        self._task: asyncio.Task[None] | None = None
        self._thread.start()

    def told(self) -> Told:
        where = self._node if self._child.pid is None else f"{self._node}, pid {self._child.pid}"
        return Told(self._life, self._child.condition, where, self._child.starts)

    def stop(self, drain: bool) -> None:  # Ray's calls
        """Returns when the process has ended."""
        self._cancel()
        self._thread.join(None if drain else STOP_SECONDS)
        self._cancel()
        self._thread.join()

    def _cancel(self) -> None:
        if self._thread.is_alive() and self._task is not None:
            with suppress(RuntimeError):  # it has ended since
                self._loop.call_soon_threadsafe(self._task.cancel)

    def _run(self) -> None:
        async def main() -> None:
            self._task = asyncio.current_task()
            with suppress(CannotStart, asyncio.CancelledError):
                await self._child.run()

        try:
            self._loop.run_until_complete(main())
        except BaseException:
            log.exception("the process cannot be looked after")
            os._exit(1)  # Ray starts the actor anew; without its thread it would be of no use
        self._loop.close()


def _program(assignment: Assignment, node: str) -> Program:
    fleet, member, secrets = assignment.fleet, assignment.member, assignment.secrets
    if member.kind is Kind.GATEWAY:
        state = state_folder() / "fleets" / fleet.name / "gateways" / member.name
        return gateway_program(fleet, member.name, node, os.environ, secrets, state)
    if member.kind is Kind.RELAY:
        return relay_program(fleet, member.name, node, os.environ, secrets)
    return server_program(fleet, member, assignment.gateway_host, node, os.environ, secrets)


def _write(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
